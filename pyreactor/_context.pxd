# Calling Python in a context, without an exception handler on the way that succeeds.

from cpython.object cimport PyObject


cdef extern from *:
    """
    /* Calls `callable` in `context`.  A new reference, or NULL with an exception set. */
    static inline PyObject *pr_call_in_context(PyObject *context, PyObject *callable,
                                               PyObject *const *args, size_t nargs)
    {
        if (PyContext_Enter(context) < 0)
            return NULL;
        PyObject *result = PyObject_Vectorcall(callable, args, nargs, NULL);
        if (PyContext_Exit(context) < 0)
            Py_CLEAR(result);
        return result;
    }

    /* Calls `object.name(first, second)` in `context`; a NULL stands for no argument.  A context
     * that is entered already (the call comes from inside it) is left as it is. */
    static inline PyObject *pr_call_method_in_context(PyObject *context, PyObject *object,
                                                      PyObject *name, PyObject *first,
                                                      PyObject *second)
    {
        PyObject *args[] = {object, first, second};
        size_t nargs = second ? 3 : first ? 2 : 1;
        int entered = PyContext_Enter(context) == 0;
        if (!entered)
            PyErr_Clear();
        PyObject *result = PyObject_VectorcallMethod(name, args, nargs, NULL);
        if (entered && PyContext_Exit(context) < 0)
            Py_CLEAR(result);
        return result;
    }

    /* "An exception is set already": lets Cython code catch what a C call has left. */
    static inline int pr_raise_pending(void)
    {
        return -1;
    }
    """
    PyObject *call_in_context "pr_call_in_context" (
        PyObject *context, PyObject *callable, PyObject *const *args, size_t nargs)
    PyObject *call_method_in_context "pr_call_method_in_context" (
        PyObject *context, PyObject *object, PyObject *name, PyObject *first, PyObject *second)
    int raise_pending "pr_raise_pending" () except -1
    void release "Py_DECREF" (PyObject *object)
    object PyContext_CopyCurrent()
    object PyContext_Copy(object context)
