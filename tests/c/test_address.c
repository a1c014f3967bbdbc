/*
 * Addresses, held against inet_ntop() and inet_pton().
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/address.h"

static void check_ip4(uint32_t host)
{
    struct pr_address address = {
        .size = sizeof address.ip4,
        .ip4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)},
    };
    char text[PR_HOST_TEXT_BYTES_MAX], expected[PR_HOST_TEXT_BYTES_MAX];
    inet_ntop(AF_INET, &address.ip4.sin_addr, expected, sizeof expected);
    CHECK_EQUAL(pr_address_format_host(&address, text), strlen(expected));
    CHECK_TEXT(text, expected);
}

static void ip4_hosts_are_written_as_inet_ntop_does(void)
{
    uint64_t seed = 1;
    for (uint32_t octet = 0; octet < 256; octet++)
        check_ip4(octet << 24 | (255 - octet) << 16 | octet << 8 | octet);
    for (int i = 0; i < 1000; i++)
        check_ip4(check_random(&seed) ^ check_random(&seed) << 1);
}

static void ip6_hosts_are_written_as_inet_ntop_does(void)
{
    static const char *const hosts[] = {"::", "::1", "fe80::1:2", "::ffff:192.0.2.1",
                                        "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        struct pr_address address;
        char text[PR_HOST_TEXT_BYTES_MAX];
        REQUIRE_EQUAL(pr_address_parse_host(&address, AF_INET6, hosts[i], 80), 0);
        CHECK_EQUAL(pr_address_format_host(&address, text), strlen(hosts[i]));
        CHECK_TEXT(text, hosts[i]);
        CHECK_EQUAL(address.size, sizeof address.ip6);
        CHECK_EQUAL(ntohs(address.ip6.sin6_port), 80);
        CHECK_EQUAL(address.ip6.sin6_scope_id, 0);
    }
}

static void an_ip4_host_is_read_with_its_port(void)
{
    struct pr_address address;
    REQUIRE_EQUAL(pr_address_parse_host(&address, AF_INET, "192.0.2.1", 65535), 0);
    CHECK_EQUAL(address.size, sizeof address.ip4);
    CHECK_EQUAL(address.any.sa_family, AF_INET);
    CHECK_EQUAL(ntohl(address.ip4.sin_addr.s_addr), 0xc0000201);
    CHECK_EQUAL(ntohs(address.ip4.sin_port), 65535);
}

static void what_is_no_numeric_host_is_refused(void)
{
    static const char *const texts[] = {"",          "localhost", "127.1",
                                        "1.2.3.256", "1.2.3.4 ",  "::1%lo"};
    struct pr_address address;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        CHECK_EQUAL(pr_address_parse_host(&address, AF_INET, texts[i], 1), -EINVAL);
        CHECK_EQUAL(pr_address_parse_host(&address, AF_INET6, texts[i], 1), -EINVAL);
    }
    CHECK_EQUAL(pr_address_parse_host(&address, AF_INET, "::1", 1), -EINVAL);
    CHECK_EQUAL(pr_address_parse_host(&address, AF_INET6, "127.0.0.1", 1), -EINVAL);
}

static void check_path(const char *path, size_t size)
{
    struct pr_address address;
    const char *found;
    REQUIRE_EQUAL(pr_address_set_path(&address, path, size), 0);
    size_t found_size = pr_address_path(&address, &found);
    CHECK_BYTES(found, found_size, path, size);
}

static void paths_and_abstract_names_come_back(void)
{
    static char longest[sizeof(((struct sockaddr_un *)0)->sun_path)];
    memset(longest, 'x', sizeof longest);
    check_path("/run/socket", 11);
    check_path("x", 1);
    check_path("\0name", 5);
    check_path("\0na\0me\0", 7);
    check_path("\0", 1);
    check_path(longest, sizeof longest - 1);
    struct pr_address address;
    CHECK_EQUAL(pr_address_set_path(&address, longest, sizeof longest), -ENAMETOOLONG);
    longest[0] = '\0';
    check_path(longest, sizeof longest);
    CHECK_EQUAL(pr_address_set_path(&address, "", 0), -EINVAL);
}

static void a_path_is_bound_as_the_kernel_tells_it(void)
{
    char path[64];
    snprintf(path, sizeof path, "%cpr-test-address-%d", 0, (int)getpid());
    struct pr_address address, peer;
    REQUIRE_EQUAL(pr_address_set_path(&address, path, 1 + strlen(path + 1)), 0);
    int server = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int client = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    REQUIRE_EQUAL(bind(server, &address.any, address.size), 0);
    CHECK_EQUAL(pr_address_of_peer(&peer, client), -ENOTCONN);
    REQUIRE_EQUAL(connect(client, &address.any, address.size), 0);
    CHECK_EQUAL(pr_address_of_peer(&peer, client), 0);
    CHECK(pr_address_equal(&peer, &address));
    close(server);
    close(client);
}

static void addresses_are_equal_where_all_that_counts_is(void)
{
    struct pr_address one, other, copy;
    REQUIRE_EQUAL(pr_address_parse_host(&one, AF_INET6, "fe80::1", 7), 0);
    REQUIRE_EQUAL(pr_address_parse_host(&other, AF_INET6, "fe80::1", 7), 0);
    CHECK(pr_address_equal(&one, &other));
    other.ip6.sin6_scope_id = 2;
    CHECK(!pr_address_equal(&one, &other));
    pr_address_copy(&copy, &other);
    CHECK(pr_address_equal(&copy, &other));
    REQUIRE_EQUAL(pr_address_parse_host(&other, AF_INET, "127.0.0.1", 7), 0);
    CHECK(!pr_address_equal(&one, &other));
}

int main(void)
{
    RUN(ip4_hosts_are_written_as_inet_ntop_does);
    RUN(ip6_hosts_are_written_as_inet_ntop_does);
    RUN(an_ip4_host_is_read_with_its_port);
    RUN(what_is_no_numeric_host_is_refused);
    RUN(paths_and_abstract_names_come_back);
    RUN(a_path_is_bound_as_the_kernel_tells_it);
    RUN(addresses_are_equal_where_all_that_counts_is);
    return check_status();
}
