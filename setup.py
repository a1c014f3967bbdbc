"""The extensions of pyreactor: each with its Cython module and the C files that it links."""

import copy
import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A file without state of its own may be linked by several.
CSRC = {
    "_errors": ["csrc/error.c"],
    "_loop": [
        "csrc/backend/backend.c",
        "csrc/backend/epoll.c",
        "csrc/backend/uring.c",
        "csrc/backend/uring_map.c",
        "csrc/backend/uring_op.c",
        "csrc/backend/uring_probe.c",
        "csrc/loop/alarm.c",
        "csrc/loop/loop.c",
        "csrc/loop/ready_queue.c",
        "csrc/loop/timer_heap.c",
        "csrc/loop/wakeup.c",
    ],
    "_base_transport": [],
    "_buffer": [
        "csrc/buffer/buffer_pool.c",
        "csrc/queue/bell.c",
        "csrc/queue/parker.c",
    ],
    "_dispatch": [
        "csrc/dispatch/handle_set.c",
        "csrc/dispatch/pump.c",
        "csrc/dispatch/signal_source.c",
        "csrc/dispatch/thread_set.c",
        "csrc/dispatch/trace.c",
        "csrc/loop/timer_heap.c",
    ],
    "_proactor": [
        "csrc/backend/uring_map.c",
        "csrc/datagram/address.c",
        "csrc/loop/timer_heap.c",
        "csrc/loop/wakeup.c",
        "csrc/buffer/buffer_pool.c",
        "csrc/proactor/buffer_group.c",
        "csrc/proactor/completion_queue.c",
        "csrc/proactor/notifier.c",
        "csrc/proactor/proactor.c",
        "csrc/proactor/readiness.c",
        "csrc/proactor/uring.c",
        "csrc/queue/bell.c",
        "csrc/queue/parker.c",
    ],
    "_service": [],
    "_demux": [
        "csrc/backend/uring_map.c",
        "csrc/demux/demux.c",
        "csrc/demux/epoll.c",
        "csrc/demux/interests.c",
        "csrc/demux/poll.c",
        "csrc/demux/select.c",
        "csrc/demux/sigio.c",
        "csrc/demux/uring.c",
        "csrc/loop/wakeup.c",
    ],
    "_fsm": ["csrc/fsm/transition_table.c"],
    "_http1": ["csrc/fsm/http1.c"],
    "_framing": ["csrc/framing/framer.c", "csrc/fsm/http1.c"],
    "_transport": ["csrc/stream/stream.c", "csrc/stream/write_queue.c"],
    "_datagram": ["csrc/datagram/address.c", "csrc/datagram/datagram.c"],
    "_streams": [],
    "_pipe": [],
    "_listener": ["csrc/stream/listener.c"],
    "_queue": [
        "csrc/queue/bell.c",
        "csrc/queue/mutex_queue.c",
        "csrc/queue/parker.c",
        "csrc/queue/request_queue.c",
        "csrc/queue/ring.c",
        "csrc/queue/ring_queue.c",
    ],
    "_file": [],
    "_shm": [
        "csrc/queue/parker.c",
        "csrc/shm/blocks.c",
        "csrc/shm/clearing.c",
        "csrc/shm/participants.c",
        "csrc/shm/segment.c",
        "csrc/shm/shared_queue.c",
    ],
    "_sock": [],
    "_thread_pool": ["csrc/queue/parker.c"],
    "_tls_engine": ["csrc/tls/openssl.c", "csrc/tls/tls.c"],
    "_tls": [],
}
LIBRARIES = {"_tls_engine": ["dl"]}  # part of the C library as of glibc 2.34


class ApartBuilder(build_ext):
    """Builds each extension in a folder of its own.

    Extensions that link the same C file write its object file at the same time otherwise, where
    they are built in parallel.
    """

    def build_extension(self, ext):
        builder = copy.copy(self)
        builder.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(builder, ext)


setup(
    cmdclass={"build_ext": ApartBuilder},
    ext_modules=cythonize(
        [
            Extension(
                f"pyreactor.{name}",
                [f"pyreactor/{name}.pyx", *sources],
                depends=glob("csrc/include/pyreactor/*.h"),
                include_dirs=["csrc/include"],
                libraries=LIBRARIES.get(name, []),
                define_macros=[("_GNU_SOURCE", None)],
                extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
            )
            for name, sources in CSRC.items()
        ]
    ),
)
