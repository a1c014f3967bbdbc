/*
 * The data path of TLS.  OpenSSL reads and writes through a BIO of our own, which copies straight
 * from the buffer that the socket was read into and appends to the one that will be sent.
 */
#include "pyreactor/tls.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* OpenSSL's numbers, the same in every version since 1.1.1. */
enum {
    BIO_TYPE_SOURCE_SINK = 0x0400,
    BIO_CTRL_EOF = 2,
    BIO_CTRL_PENDING = 10,
    BIO_CTRL_FLUSH = 11,
    BIO_CTRL_WPENDING = 13,
    BIO_FLAGS_READ = 0x01,
    BIO_FLAGS_RWS = 0x07,
    BIO_FLAGS_SHOULD_RETRY = 0x08,
    SSL_ERROR_WANT_READ = 2,
    SSL_ERROR_WANT_WRITE = 3,
    SSL_ERROR_ZERO_RETURN = 6,
};

#define RECORD_OVERHEAD_BYTES_MAX 256 /* header, padding, tag; generous, it is only a guess */
#define OUTPUT_BYTES_MIN 512

/* --- The BIO ---------------------------------------------------------------------------------- */

static BIO_METHOD *method; /* made once, never freed: a BIO may outlive everything here */

/* The connection; NULL once that is gone. */
static struct pr_tls *owner_of(BIO *bio)
{
    return pr_openssl.bio_get_data(bio);
}

static int read_input(BIO *bio, char *buffer, int size)
{
    struct pr_tls *tls = owner_of(bio);
    pr_openssl.bio_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
    if (!tls || size <= 0)
        return 0;
    if (!tls->input_size) {
        pr_openssl.bio_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
        return -1;
    }
    size_t count = (size_t)size < tls->input_size ? (size_t)size : tls->input_size;
    memcpy(buffer, tls->input, count);
    tls->input += count;
    tls->input_size -= count;
    return (int)count;
}

static int reserve_output(struct pr_tls *tls, size_t more)
{
    size_t needed = tls->output_size + more;
    if (needed <= tls->output_capacity)
        return 0;
    size_t capacity = tls->output_capacity ? tls->output_capacity * 2 : OUTPUT_BYTES_MIN;
    if (capacity < needed)
        capacity = needed;
    char *output = realloc(tls->output, capacity);
    if (!output)
        return -ENOMEM;
    tls->output = output;
    tls->output_capacity = capacity;
    return 0;
}

static int write_output(BIO *bio, const char *data, int size)
{
    struct pr_tls *tls = owner_of(bio);
    pr_openssl.bio_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
    if (!tls || size <= 0 || reserve_output(tls, (size_t)size) < 0)
        return -1;
    memcpy(tls->output + tls->output_size, data, (size_t)size);
    tls->output_size += (size_t)size;
    return size;
}

static long control(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    const struct pr_tls *tls = owner_of(bio);
    switch (command) {
    case BIO_CTRL_FLUSH:
        return 1;
    case BIO_CTRL_EOF:
        return tls == NULL;
    case BIO_CTRL_PENDING:
        return tls ? (long)tls->input_size : 0;
    case BIO_CTRL_WPENDING:
        return tls ? (long)tls->output_size : 0;
    default:
        return 0;
    }
}

int pr_tls_load(void)
{
    int type = pr_openssl.bio_new_index();
    method = pr_openssl.bio_meth_new(type | BIO_TYPE_SOURCE_SINK, "pyreactor");
    if (!method)
        return -ENOMEM;
    pr_openssl.bio_meth_set_read(method, read_input);
    pr_openssl.bio_meth_set_write(method, write_output);
    pr_openssl.bio_meth_set_ctrl(method, control);
    return 0;
}

/* --- The connection --------------------------------------------------------------------------- */

int pr_tls_init(struct pr_tls *tls, SSL *ssl)
{
    BIO *bio = pr_openssl.bio_new(method);
    if (!bio)
        return -ENOMEM;
    *tls = (struct pr_tls){.ssl = ssl, .bio = bio};
    pr_openssl.bio_set_data(bio, tls);
    pr_openssl.bio_set_init(bio, 1);
    pr_openssl.bio_up_ref(bio);
    pr_openssl.ssl_set_bio(ssl, bio, bio);
    return 0;
}

void pr_tls_deinit(struct pr_tls *tls)
{
    if (!tls->bio)
        return;
    pr_openssl.bio_set_data(tls->bio, NULL);
    pr_openssl.bio_free(tls->bio);
    free(tls->kept);
    free(tls->output);
    *tls = (struct pr_tls){.ssl = NULL};
}

int pr_tls_feed(struct pr_tls *tls, const char *data, size_t size)
{
    if (!tls->input_size) {
        free(tls->kept);
        tls->kept = NULL;
        tls->input = data;
        tls->input_size = size;
        return 0;
    }
    /* More comes although what was there is not used up: a lower transport that does not pause. */
    char *joined = malloc(tls->input_size + size);
    if (!joined)
        return -ENOMEM;
    memcpy(joined, tls->input, tls->input_size);
    memcpy(joined + tls->input_size, data, size);
    free(tls->kept);
    tls->input = tls->kept = joined;
    tls->input_size += size;
    return 0;
}

int pr_tls_keep(struct pr_tls *tls)
{
    if (tls->kept || !tls->input_size)
        return 0;
    tls->kept = malloc(tls->input_size);
    if (!tls->kept) {
        tls->input_size = 0;
        return -ENOMEM;
    }
    memcpy(tls->kept, tls->input, tls->input_size);
    tls->input = tls->kept;
    return 0;
}

bool pr_tls_has_input(const struct pr_tls *tls)
{
    return tls->input_size || tls->closed || tls->failed || pr_openssl.ssl_pending(tls->ssl);
}

size_t pr_tls_readable_max(const struct pr_tls *tls)
{
    return tls->input_size + (size_t)pr_openssl.ssl_pending(tls->ssl) +
           (tls->mid_record ? PR_TLS_RECORD_BYTES_MAX : 0);
}

/* Errors that others have left in the thread's queue would be taken for ours. */
static void forget_errors(void)
{
    if (pr_openssl.peek_error())
        pr_openssl.clear_error();
}

static int explain(const struct pr_tls *tls, int result)
{
    switch (pr_openssl.ssl_get_error(tls->ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: /* cannot be: the output grows */
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        return -EPROTO;
    }
}

ssize_t pr_tls_read(struct pr_tls *tls, char *buffer, size_t size)
{
    if (tls->closed || tls->failed)
        return tls->closed ? 0 : -EPROTO;
    size_t filled = 0;
    forget_errors();
    do {
        size_t count = 0;
        size_t left = tls->input_size;
        int result = pr_openssl.ssl_read_ex(tls->ssl, buffer + filled, size - filled, &count);
        if (result != 1) {
            int reason = explain(tls, result);
            tls->mid_record = tls->mid_record || tls->input_size < left;
            tls->closed = reason == 0;
            tls->failed = reason == -EPROTO;
            return filled ? (ssize_t)filled : reason;
        }
        tls->mid_record = false;
        filled += count;
    } while (filled < size && pr_tls_has_input(tls));
    return (ssize_t)filled;
}

int pr_tls_write(struct pr_tls *tls, const char *data, size_t size)
{
    size_t records = size / PR_TLS_RECORD_BYTES_MAX + 1;
    if (reserve_output(tls, size + records * RECORD_OVERHEAD_BYTES_MAX) < 0)
        return -ENOMEM;
    forget_errors();
    size_t count = 0;
    int result = pr_openssl.ssl_write_ex(tls->ssl, data, size, &count);
    if (result == 1)
        return 0;
    int reason = explain(tls, result);
    return reason ? reason : -EPROTO;
}

char *pr_tls_take_output(struct pr_tls *tls)
{
    char *output = tls->output;
    tls->output = NULL;
    tls->output_size = tls->output_capacity = 0;
    return output;
}

void pr_tls_clear_output(struct pr_tls *tls)
{
    free(pr_tls_take_output(tls));
}
