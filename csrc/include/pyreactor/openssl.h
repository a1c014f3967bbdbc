/*
 * The few functions of OpenSSL that move bytes, taken at run time from the library that is loaded
 * already: the one that Python's `_ssl` module uses, whose SSL objects they will be given.  No
 * headers of OpenSSL are needed to build; what is declared here is the ABI since 1.1.1.
 */
#ifndef PYREACTOR_OPENSSL_H
#define PYREACTOR_OPENSSL_H

#include <stdbool.h>
#include <stddef.h>

/* OpenSSL's types, which only its own functions look into. */
typedef struct ssl_st SSL;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;

struct pr_openssl {
    unsigned long (*peek_error)(void);
    void (*clear_error)(void);

    int (*bio_new_index)(void);
    BIO_METHOD *(*bio_meth_new)(int type, const char *name);
    int (*bio_meth_set_read)(BIO_METHOD *method, int (*read)(BIO *, char *, int));
    int (*bio_meth_set_write)(BIO_METHOD *method, int (*write)(BIO *, const char *, int));
    int (*bio_meth_set_ctrl)(BIO_METHOD *method, long (*ctrl)(BIO *, int, long, void *));
    BIO *(*bio_new)(const BIO_METHOD *method);
    int (*bio_free)(BIO *bio);
    int (*bio_up_ref)(BIO *bio);
    long (*bio_ctrl)(BIO *bio, int command, long number, void *pointer);
    void (*bio_set_data)(BIO *bio, void *data);
    void *(*bio_get_data)(BIO *bio);
    void (*bio_set_init)(BIO *bio, int init);
    void (*bio_set_flags)(BIO *bio, int flags);
    void (*bio_clear_flags)(BIO *bio, int flags);

    void (*ssl_set_bio)(SSL *ssl, BIO *rbio, BIO *wbio);
    BIO *(*ssl_get_rbio)(const SSL *ssl);
    BIO *(*ssl_get_wbio)(const SSL *ssl);
    void *(*ssl_get_ex_data)(const SSL *ssl, int index);
    int (*ssl_read_ex)(SSL *ssl, void *buffer, size_t size, size_t *count);
    int (*ssl_write_ex)(SSL *ssl, const void *data, size_t size, size_t *count);
    int (*ssl_pending)(const SSL *ssl);
    int (*ssl_get_error)(const SSL *ssl, int result);
};

/* The table: there is one `_ssl` in a process.  Written by pr_openssl_load() only. */
extern struct pr_openssl pr_openssl;

/*
 * Fills the table from the library that the object containing the address `inside` is linked with,
 * or has in itself.  Returns 0, -ENOENT where that object cannot be asked, or -ENOSYS where a
 * function is missing.  Before any other thread uses the table.
 */
int pr_openssl_load(const void *inside);

/* True if the page of `address` is mapped.  Any thread. */
bool pr_openssl_is_mapped(const void *address);

#endif
