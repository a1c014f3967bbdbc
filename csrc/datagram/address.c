/*
 * Addresses to text and back.  IPv4 is written by hand: inet_ntop() goes through printf, which
 * takes ten times as long, and a server does it for every peer.
 */
#include "pyreactor/address.h"

#include <arpa/inet.h>
#include <errno.h>

static char *write_octet(char *text, unsigned octet)
{
    if (octet >= 100)
        *text++ = (char)('0' + octet / 100);
    if (octet >= 10)
        *text++ = (char)('0' + octet / 10 % 10);
    *text++ = (char)('0' + octet % 10);
    return text;
}

size_t pr_address_format_host(const struct pr_address *address, char text[PR_HOST_TEXT_BYTES_MAX])
{
    if (address->any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &address->ip6.sin6_addr, text, PR_HOST_TEXT_BYTES_MAX);
        return strlen(text);
    }
    uint32_t host = ntohl(address->ip4.sin_addr.s_addr);
    char *end = text;
    for (int shift = 24; shift >= 0; shift -= 8) {
        end = write_octet(end, host >> shift & 255);
        *end++ = '.';
    }
    *--end = '\0';
    return (size_t)(end - text);
}

int pr_address_parse_host(struct pr_address *address, int family, const char *host, uint16_t port)
{
    if (family == AF_INET) {
        address->size = sizeof address->ip4;
        address->ip4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
        return inet_pton(AF_INET, host, &address->ip4.sin_addr) == 1 ? 0 : -EINVAL;
    }
    address->size = sizeof address->ip6;
    address->ip6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
    return inet_pton(AF_INET6, host, &address->ip6.sin6_addr) == 1 ? 0 : -EINVAL;
}

int pr_address_set_path(struct pr_address *address, const char *path, size_t size)
{
    if (size == 0)
        return -EINVAL;
    size_t whole_size = size + (path[0] != '\0'); /* a path has an end mark, a name has not */
    if (whole_size > sizeof address->local.sun_path)
        return -ENAMETOOLONG;
    address->local = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->local.sun_path, path, size);
    address->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + whole_size);
    return 0;
}

size_t pr_address_path(const struct pr_address *address, const char **path)
{
    size_t size = address->size - offsetof(struct sockaddr_un, sun_path);
    *path = address->local.sun_path;
    return size && **path ? strnlen(*path, size) : size;
}

int pr_address_of_peer(struct pr_address *address, int fd)
{
    address->size = sizeof *address - offsetof(struct pr_address, any);
    return getpeername(fd, &address->any, &address->size) < 0 ? -errno : 0;
}
