/*
 * TLS's data path, and finding OpenSSL: two ends in memory, with the OpenSSL of this machine.  The
 * ends are made here, since the core never makes one; they trust each other without certificates.
 */
#include "check.h"
#include "pyreactor/tls.h"

#include <dlfcn.h>
#include <errno.h>

#define SSL_CTRL_SET_DH_AUTO 118
#define SSL_CTRL_SET_MAX_PROTO_VERSION 124
#define TLS1_2_VERSION 0x0303
#define CHUNK_BYTES (40 * 1024)

typedef struct ssl_ctx_st SSL_CTX;

/* What only the maker of an SSL object needs. */
static struct {
    void *library;
    const void *(*method)(void);
    SSL_CTX *(*ctx_new)(const void *method);
    void (*ctx_free)(SSL_CTX *context);
    long (*ctx_ctrl)(SSL_CTX *context, int command, long number, void *pointer);
    int (*ctx_set_cipher_list)(SSL_CTX *context, const char *ciphers);
    SSL *(*ssl_new)(SSL_CTX *context);
    void (*ssl_free)(SSL *ssl);
    void (*set_connect_state)(SSL *ssl);
    void (*set_accept_state)(SSL *ssl);
    int (*do_handshake)(SSL *ssl);
    int (*shutdown)(SSL *ssl);
    SSL_CTX *context;
} maker;

static void find(void *pointer, const char *name)
{
    void *address = dlsym(maker.library, name);
    REQUIRE(address);
    memcpy(pointer, &address, sizeof address);
}

static bool load(void)
{
    maker.library = dlopen("libssl.so.3", RTLD_NOW);
    if (!maker.library)
        maker.library = dlopen("libssl.so.1.1", RTLD_NOW);
    if (!maker.library)
        return false;
    find(&maker.method, "TLS_method");
    find(&maker.ctx_new, "SSL_CTX_new");
    find(&maker.ctx_free, "SSL_CTX_free");
    find(&maker.ctx_ctrl, "SSL_CTX_ctrl");
    find(&maker.ctx_set_cipher_list, "SSL_CTX_set_cipher_list");
    find(&maker.ssl_new, "SSL_new");
    find(&maker.ssl_free, "SSL_free");
    find(&maker.set_connect_state, "SSL_set_connect_state");
    find(&maker.set_accept_state, "SSL_set_accept_state");
    find(&maker.do_handshake, "SSL_do_handshake");
    find(&maker.shutdown, "SSL_shutdown");
    maker.context = maker.ctx_new(maker.method());
    REQUIRE(maker.context);
    maker.ctx_ctrl(maker.context, SSL_CTRL_SET_DH_AUTO, 1, NULL);
    maker.ctx_ctrl(maker.context, SSL_CTRL_SET_MAX_PROTO_VERSION, TLS1_2_VERSION, NULL);
    return maker.ctx_set_cipher_list(maker.context, "ADH-AES128-GCM-SHA256:@SECLEVEL=0") == 1;
}

struct end {
    SSL *ssl;
    struct pr_tls tls;
};

static struct end client, server;

static void begin_end(struct end *end, void (*set_state)(SSL *))
{
    end->ssl = maker.ssl_new(maker.context);
    REQUIRE(end->ssl);
    set_state(end->ssl);
    REQUIRE_EQUAL(pr_tls_init(&end->tls, end->ssl), 0);
}

/* Carries what `from` has to send, as ciphertext that is lent: `kept` by `to` before the return. */
static size_t carry(struct end *from, struct end *to)
{
    size_t size = from->tls.output_size;
    char *data = pr_tls_take_output(&from->tls);
    if (data) {
        CHECK_EQUAL(pr_tls_feed(&to->tls, data, size), 0);
        CHECK_EQUAL(pr_tls_keep(&to->tls), 0);
        free(data);
    }
    return size;
}

static void begin(void)
{
    begin_end(&client, maker.set_connect_state);
    begin_end(&server, maker.set_accept_state);
    bool client_made = false, server_made = false;
    for (int round = 0; round < 10 && !(client_made && server_made); round++) {
        client_made = maker.do_handshake(client.ssl) == 1;
        carry(&client, &server);
        server_made = maker.do_handshake(server.ssl) == 1;
        carry(&server, &client);
    }
    REQUIRE(client_made && server_made);
}

static void end(void)
{
    pr_tls_deinit(&client.tls);
    pr_tls_deinit(&server.tls);
    maker.ssl_free(client.ssl);
    maker.ssl_free(server.ssl);
}

static void write_text(struct end *from, const char *text)
{
    CHECK_EQUAL(pr_tls_write(&from->tls, text, strlen(text)), 0);
}

static void check_text(struct end *at, const char *text)
{
    char buffer[100];
    ssize_t count = pr_tls_read(&at->tls, buffer, sizeof buffer);
    CHECK_EQUAL(count, (ssize_t)strlen(text));
    if (count > 0)
        CHECK(memcmp(buffer, text, (size_t)count) == 0);
}

/* --- Tests ------------------------------------------------------------------------------------ */

static void an_object_without_openssl_is_refused(void)
{
    CHECK_EQUAL(pr_openssl_load(stdout), -ENOSYS); /* the C library's */
    int local = 0;
    CHECK_EQUAL(pr_openssl_load(&local), -ENOENT); /* on the stack: in no object */
}

static void a_mapped_address_is_told_from_one_that_is_not(void)
{
    int local = 0;
    CHECK(pr_openssl_is_mapped(&local));
    CHECK(!pr_openssl_is_mapped((void *)8));
}

static void bytes_go_both_ways(void)
{
    begin();
    CHECK(!pr_tls_has_input(&server.tls));
    write_text(&client, "question");
    carry(&client, &server);
    CHECK(pr_tls_has_input(&server.tls));
    check_text(&server, "question");
    CHECK(!pr_tls_has_input(&server.tls));
    write_text(&server, "answer");
    carry(&server, &client);
    check_text(&client, "answer");
    char byte;
    CHECK_EQUAL(pr_tls_read(&client.tls, &byte, 1), -EAGAIN);
    end();
}

static void one_read_takes_many_records(void)
{
    begin();
    write_text(&client, "one");
    write_text(&client, "two");
    carry(&client, &server);
    write_text(&client, "three");
    carry(&client, &server); /* while the first two are still there */
    check_text(&server, "onetwothree");
    end();
}

static void a_small_buffer_takes_a_record_in_pieces(void)
{
    begin();
    write_text(&client, "abcdef");
    carry(&client, &server);
    char buffer[4];
    CHECK_EQUAL(pr_tls_read(&server.tls, buffer, 4), 4);
    CHECK(pr_tls_has_input(&server.tls));
    CHECK_EQUAL(pr_tls_readable_max(&server.tls), 2);
    CHECK_EQUAL(pr_tls_read(&server.tls, buffer, 4), 2);
    CHECK(!pr_tls_has_input(&server.tls));
    end();
}

static void a_record_may_come_byte_by_byte(void)
{
    begin();
    write_text(&client, "slow");
    size_t size = client.tls.output_size;
    char *data = pr_tls_take_output(&client.tls);
    char buffer[100];
    for (size_t i = 0; i < size; i++) {
        CHECK_EQUAL(pr_tls_feed(&server.tls, data + i, 1), 0);
        CHECK_AT_MOST(4, pr_tls_readable_max(&server.tls) + 4 * (i == 0));
        ssize_t count = pr_tls_read(&server.tls, buffer, sizeof buffer);
        CHECK_EQUAL(count, i + 1 < size ? -EAGAIN : 4);
        CHECK_EQUAL(server.tls.mid_record, i + 1 < size);
    }
    free(data);
    end();
}

static void large_data_arrives_whole(void)
{
    begin();
    static char data[CHUNK_BYTES], received[CHUNK_BYTES];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 31 + i / 251);
    CHECK_EQUAL(pr_tls_write(&client.tls, data, sizeof data), 0);
    CHECK_AT_MOST(sizeof data, client.tls.output_size);
    carry(&client, &server);
    CHECK_AT_MOST(sizeof data, pr_tls_readable_max(&server.tls));
    CHECK_EQUAL(pr_tls_read(&server.tls, received, sizeof received), (ssize_t)sizeof data);
    CHECK(memcmp(data, received, sizeof data) == 0);
    end();
}

static void an_end_comes_after_the_data_before_it(void)
{
    begin();
    write_text(&client, "last");
    maker.shutdown(client.ssl);
    carry(&client, &server);
    check_text(&server, "last");
    CHECK(server.tls.closed);
    CHECK(pr_tls_has_input(&server.tls));
    char byte;
    CHECK_EQUAL(pr_tls_read(&server.tls, &byte, 1), 0);
    CHECK_EQUAL(pr_tls_read(&server.tls, &byte, 1), 0);
    end();
}

static void a_damaged_record_fails_after_the_data_before_it(void)
{
    begin();
    write_text(&client, "good");
    write_text(&client, "bad");
    client.tls.output[client.tls.output_size - 1] ^= 1;
    carry(&client, &server);
    check_text(&server, "good");
    CHECK(server.tls.failed);
    CHECK(pr_openssl.peek_error() != 0);
    pr_openssl.clear_error();
    char byte;
    CHECK_EQUAL(pr_tls_read(&server.tls, &byte, 1), -EPROTO);
    CHECK(server.tls.output_size != 0); /* the alert */
    end();
}

static void an_error_of_somebody_else_is_not_ours(void)
{
    begin();
    SSL *stranger = maker.ssl_new(maker.context);
    CHECK_EQUAL(maker.do_handshake(stranger), -1); /* neither client nor server */
    CHECK(pr_openssl.peek_error() != 0);
    char byte;
    CHECK_EQUAL(pr_tls_read(&server.tls, &byte, 1), -EAGAIN);
    maker.ssl_free(stranger);
    end();
}

static void an_ssl_object_may_outlive_its_data_path(void)
{
    begin();
    pr_tls_deinit(&server.tls);
    pr_tls_deinit(&server.tls); /* once more does nothing */
    char byte;
    size_t count;
    CHECK_EQUAL(pr_openssl.ssl_read_ex(server.ssl, &byte, 1, &count), 0);
    CHECK_EQUAL(pr_openssl.ssl_write_ex(server.ssl, "x", 1, &count), 0);
    pr_openssl.clear_error();
    end();
}

int main(void)
{
    RUN(an_object_without_openssl_is_refused);
    RUN(a_mapped_address_is_told_from_one_that_is_not);
    if (!load()) {
        puts("no libssl.so.3 or libssl.so.1.1 with anonymous ciphers here; on Debian: make deps");
        return CHECK_SKIPPED;
    }
    REQUIRE_EQUAL(pr_openssl_load((const void *)maker.ssl_new), 0);
    REQUIRE_EQUAL(pr_tls_load(), 0);
    RUN(bytes_go_both_ways);
    RUN(one_read_takes_many_records);
    RUN(a_small_buffer_takes_a_record_in_pieces);
    RUN(a_record_may_come_byte_by_byte);
    RUN(large_data_arrives_whole);
    RUN(an_end_comes_after_the_data_before_it);
    RUN(a_damaged_record_fails_after_the_data_before_it);
    RUN(an_error_of_somebody_else_is_not_ours);
    RUN(an_ssl_object_may_outlive_its_data_path);
    maker.ctx_free(maker.context);
    return check_status();
}
