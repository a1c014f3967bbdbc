/*
 * One TLS connection's data path: ciphertext in, plaintext out, and back, over an SSL object that
 * somebody else has made and owns.  OpenSSL reads the ciphertext where it was received and writes
 * into one growing buffer; nothing here is a system call.
 *
 * The handshake and the shutdown are not here: whoever owns the SSL object calls them, and they
 * read and write through this, too.
 *
 * All functions: one thread at a time for each connection, the one that may use its SSL object.
 */
#ifndef PYREACTOR_TLS_H
#define PYREACTOR_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "pyreactor/openssl.h"

#define PR_TLS_RECORD_BYTES_MAX (16 * 1024) /* plaintext of one record */

struct pr_tls {
    SSL *ssl; /* borrowed: outlives this */
    BIO *bio; /* one reference is ours, one the SSL object's */

    const char *input; /* ciphertext that OpenSSL has not read; lent, or inside `kept` */
    size_t input_size;
    char *kept;      /* owned; NULL where the input is lent */
    bool mid_record; /* OpenSSL holds the beginning of a record */
    bool closed;     /* the peer's close_notify was read */
    bool failed;     /* reading failed; OpenSSL's error queue had the reason then */

    char *output; /* owned; ciphertext to be sent */
    size_t output_size;
    size_t output_capacity;
};

/* Gets ready, once the table of openssl.h is filled; once per process.  Returns 0 or -ENOMEM.
 * Before any other thread uses this file. */
int pr_tls_load(void);

/* Puts itself in the place of the BIOs that `ssl` had.  Returns 0 or -ENOMEM. */
int pr_tls_init(struct pr_tls *tls, SSL *ssl);

/* Frees what is held; the SSL object, which may live on, finds its input ended. */
void pr_tls_deinit(struct pr_tls *tls);

/* Adds ciphertext, which is lent until pr_tls_keep().  Returns 0 or -ENOMEM. */
int pr_tls_feed(struct pr_tls *tls, const char *data, size_t size);

/* Ends the loan: what was not read is copied.  Returns 0 or -ENOMEM. */
int pr_tls_keep(struct pr_tls *tls);

/* True if another pr_tls_read() may bring something, be it the end, without more ciphertext. */
bool pr_tls_has_input(const struct pr_tls *tls);

/* How much plaintext one pr_tls_read() after another can bring at the most. */
size_t pr_tls_readable_max(const struct pr_tls *tls);

/*
 * Decrypts up to `size` bytes, from as many records as it takes.  Returns how many, 0 where the
 * peer has closed, -EAGAIN where more ciphertext is needed, or -EPROTO where OpenSSL's error queue
 * has the reason.  What came before an end or an error is returned first.
 */
ssize_t pr_tls_read(struct pr_tls *tls, char *buffer, size_t size);

/* Encrypts all of `data`.  Returns 0, -EAGAIN (nothing is taken; try again after more ciphertext),
 * -ENOMEM, or -EPROTO as pr_tls_read(). */
int pr_tls_write(struct pr_tls *tls, const char *data, size_t size);

/* Takes the output buffer out; free() it.  NULL where there is none. */
char *pr_tls_take_output(struct pr_tls *tls);

/* Drops what was sent and the memory. */
void pr_tls_clear_output(struct pr_tls *tls);

#endif
