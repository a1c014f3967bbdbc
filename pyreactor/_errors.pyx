# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The one place where an error code of the C core becomes a Python exception."""

from pyreactor._native cimport pr_error_hint, pr_strerror


cdef object errno_exception(int error):
    """The OSError (or its subclass) for `error`, a negative errno."""
    cdef const char *hint = pr_error_hint(error)
    exception = OSError(-error, pr_strerror(error).decode())
    if hint != NULL:
        exception.add_note(hint.decode())
    return exception


cdef int raise_errno(int error) except -1:
    """Raises the exception for `error`, a negative errno."""
    raise errno_exception(error)
