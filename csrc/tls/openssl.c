/*
 * Finding OpenSSL in the running process.  Only the object that contains a given address, and what
 * that object is linked with, is searched: another copy of OpenSSL in the process, a database
 * driver's for example, must not be taken for it.
 */
#include "pyreactor/openssl.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct pr_openssl pr_openssl;

struct symbol {
    const char *name;
    size_t offset; /* of the pointer in struct pr_openssl */
};

static const struct symbol symbols[] = {
    {"ERR_peek_error", offsetof(struct pr_openssl, peek_error)},
    {"ERR_clear_error", offsetof(struct pr_openssl, clear_error)},
    {"BIO_get_new_index", offsetof(struct pr_openssl, bio_new_index)},
    {"BIO_meth_new", offsetof(struct pr_openssl, bio_meth_new)},
    {"BIO_meth_set_read", offsetof(struct pr_openssl, bio_meth_set_read)},
    {"BIO_meth_set_write", offsetof(struct pr_openssl, bio_meth_set_write)},
    {"BIO_meth_set_ctrl", offsetof(struct pr_openssl, bio_meth_set_ctrl)},
    {"BIO_new", offsetof(struct pr_openssl, bio_new)},
    {"BIO_free", offsetof(struct pr_openssl, bio_free)},
    {"BIO_up_ref", offsetof(struct pr_openssl, bio_up_ref)},
    {"BIO_ctrl", offsetof(struct pr_openssl, bio_ctrl)},
    {"BIO_set_data", offsetof(struct pr_openssl, bio_set_data)},
    {"BIO_get_data", offsetof(struct pr_openssl, bio_get_data)},
    {"BIO_set_init", offsetof(struct pr_openssl, bio_set_init)},
    {"BIO_set_flags", offsetof(struct pr_openssl, bio_set_flags)},
    {"BIO_clear_flags", offsetof(struct pr_openssl, bio_clear_flags)},
    {"SSL_set_bio", offsetof(struct pr_openssl, ssl_set_bio)},
    {"SSL_get_rbio", offsetof(struct pr_openssl, ssl_get_rbio)},
    {"SSL_get_wbio", offsetof(struct pr_openssl, ssl_get_wbio)},
    {"SSL_get_ex_data", offsetof(struct pr_openssl, ssl_get_ex_data)},
    {"SSL_read_ex", offsetof(struct pr_openssl, ssl_read_ex)},
    {"SSL_write_ex", offsetof(struct pr_openssl, ssl_write_ex)},
    {"SSL_pending", offsetof(struct pr_openssl, ssl_pending)},
    {"SSL_get_error", offsetof(struct pr_openssl, ssl_get_error)},
};

#define SYMBOL_COUNT (sizeof symbols / sizeof *symbols)

/*
 * The object at `inside`, opened again.  The program itself cannot be opened by its name, and the
 * handle it has (dlopen(NULL)) searches everything global: then `*alone` is set, and a symbol
 * counts only where it is in the program, too.
 */
static void *open_object(const Dl_info *object, bool *alone)
{
    *alone = false;
    void *handle = dlopen(object->dli_fname, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
    if (!handle) {
        *alone = true;
        handle = dlopen(NULL, RTLD_LAZY);
    }
    return handle;
}

static bool is_inside(const void *address, const Dl_info *object)
{
    Dl_info found;
    return dladdr(address, &found) && found.dli_fbase == object->dli_fbase;
}

int pr_openssl_load(const void *inside)
{
    Dl_info object;
    if (!dladdr(inside, &object))
        return -ENOENT;
    bool alone;
    void *handle = open_object(&object, &alone);
    if (!handle)
        return -ENOENT;
    int error = 0;
    for (size_t i = 0; i < SYMBOL_COUNT && !error; i++) {
        void *address = dlsym(handle, symbols[i].name);
        if (!address || (alone && !is_inside(address, &object)))
            error = -ENOSYS;
        else
            memcpy((char *)&pr_openssl + symbols[i].offset, &address, sizeof address);
    }
    dlclose(handle); /* what it found stays: the object was loaded before */
    return error;
}

bool pr_openssl_is_mapped(const void *address)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    return msync((void *)((uintptr_t)address & ~(page - 1)), page, MS_ASYNC) == 0;
}
