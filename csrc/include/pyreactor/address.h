/*
 * Socket addresses of the families that datagrams are sent to without asking anybody: IPv4, IPv6
 * and Unix.  All functions: any thread; they touch nothing but their arguments.
 */
#ifndef PYREACTOR_ADDRESS_H
#define PYREACTOR_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PR_HOST_TEXT_BYTES_MAX INET6_ADDRSTRLEN

struct pr_address {
    socklen_t size; /* 0: no address */
    union {
        struct sockaddr any;
        struct sockaddr_in ip4;
        struct sockaddr_in6 ip6;
        struct sockaddr_un local;
    };
};

/*
 * Writes the numeric host of an IPv4 or IPv6 address, with an end mark, as inet_ntop() does.
 * Returns its length.
 */
size_t pr_address_format_host(const struct pr_address *address, char text[PR_HOST_TEXT_BYTES_MAX]);

/* Fills an IPv4 or IPv6 address (`family` AF_INET or AF_INET6) from a numeric host.  Returns 0, or
 * -EINVAL for any other text. */
int pr_address_parse_host(struct pr_address *address, int family, const char *host, uint16_t port);

/* Fills a Unix address from a path, or an abstract name, which begins with a zero byte.  Returns 0,
 * -EINVAL for an empty one or -ENAMETOOLONG. */
int pr_address_set_path(struct pr_address *address, const char *path, size_t size);

/* The path or abstract name of a Unix address; returns its size, without an end mark. */
size_t pr_address_path(const struct pr_address *address, const char **path);

/* Reads the address that the peer of a connected socket has.  Returns 0 or a negative errno. */
int pr_address_of_peer(struct pr_address *address, int fd);

/* True where both name the same. */
static inline bool pr_address_equal(const struct pr_address *one, const struct pr_address *other)
{
    return one->size == other->size && memcmp(&one->any, &other->any, one->size) == 0;
}

/* Copies what is in use of it. */
static inline void pr_address_copy(struct pr_address *target, const struct pr_address *source)
{
    target->size = source->size;
    memcpy(&target->any, &source->any, source->size);
}

#endif
