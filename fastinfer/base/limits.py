"""Every limit of the server, with its precedent. Most are defaults of options of the same name
(config/server.py); those under "fixed" are not.

Sizes are bytes, times are seconds unless the name says otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB

# --- HTTP head (h11 allows 16 KiB in all; nginx 4 x 8 KiB; Apache 100 fields of 8 KiB) --------------------------------
MAX_HEAD_BYTES = 16 * KIB
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 * KIB
MAX_LEADING_EMPTY_LINES = 2  # RFC 9112 §2.2 asks for at least one

# --- HTTP body --------------------------------------------------------------------------------------------------------
MAX_BODY_BYTES = 64 * MIB  # also after inflating; MLServer and Triton (from 24.12 on) default to the same
MAX_CONTROL_BODY_BYTES = 64 * KIB  # unload, index, hardware, a load without its configuration: small objects
MAX_LOAD_BODY_BYTES = 1 * MIB  # a load that brings a model's configuration along (nginx's default body limit)
MAX_CONTROL_VALUES = 10_000  # of such a body; a configuration in it is one value, a text
MAX_INFLATION = 100  # times the compressed size, beyond the first mebibyte; JSON of random numbers has 3, of text 10
FREE_INFLATED_BYTES = 1 * MIB
MAX_CHUNKS = 65_536
CHUNK_FRAMING_BYTES = 16 * KIB  # framing a chunked body may add, plus ...
CHUNK_FRAMING_BYTES_PER_CHUNK = 16
MIN_COMPRESSED_BYTES = 1 * KIB  # smaller answers are not worth compressing
KEPT_BODY_BYTES = 32 * MIB  # memory of bodies kept for a few seconds: of twenty images as text
MAX_SKIPPED_BODY_BYTES = 64 * KIB  # of a refused request: read and thrown away, so that the connection stays usable

# --- Connections ------------------------------------------------------------------------------------------------------
MAX_CONNECTIONS = 16_000
MAX_PIPELINED = 16  # then reading pauses
MAX_AWAITED_ANSWER_BYTES = 1 * MIB  # of a connection, were they all as large as its largest; then it pauses too
HEAD_TIMEOUT_S = 30.0  # 408
BODY_IDLE_TIMEOUT_S = 60.0  # 408; nginx's client_body_timeout
BODY_MIN_BYTES_PER_S = 1 * KIB  # 408
UPLOAD_TIMEOUT_S = 600.0  # 408
KEEP_ALIVE_TIMEOUT_S = 75.0  # nginx
WRITE_TIMEOUT_S = 60.0  # no progress of the reader: close
PRESSED_SHARE = 0.75  # of the budget for requests in flight; above it, clients that hold memory must get on:
PRESSED_IDLE_S = 2.0  # an upload, in so short a time ...
PRESSED_BYTES_PER_S = 64 * KIB  # ... by so much; a reader must take a quarter of its answer in some four seconds
LINGER_S = 2.0  # after an error, so that the client can read the answer
MAX_LINGERS = 15  # times that, while it still sends: nginx's lingering_time
DRAIN_IDLE_S = 1.0  # while draining: an idle connection is given this long to send one more request
HALF_CLOSED_PROBE_S = 0.25  # a client that closed its side and waits this long is asked whether it is still there
COLLECTED_OBJECTS = 20_000  # collector threshold of generation 0 (Python's default: 700)
READ_BUFFER_BYTES = 64 * KIB  # shared by all connections; libuv's suggestion
MAX_CACHED_HEADS = 512  # request heads whose meaning is remembered ...
MAX_CACHED_HEAD_BYTES = 4 * KIB  # ... of at most this size (mirrored by http/head_cache.pyx)
IN_FLIGHT_MEMORY_SHARE = 0.25  # of RAM; 503 above

# --- JSON and tensors, fixed (mirrored by codec/json.pxd, codec/decoder.pxd, codec/data.pyx, tensor/tensor.pxd) -------
MAX_JSON_DEPTH = 100
MAX_RANK = 16
MAX_INPUTS = 1024  # inputs or outputs of one request
MAX_NAME_BYTES = 4 * KIB  # of an input or output; they become Python's, on the loop's thread: so large ones stop it
MAX_ID_BYTES = 1 * MIB  # of a request, for the same reason
MAX_CLASSES = 10_000  # of a row; ImageNet-21k has 21,841, and nobody reads them all as text
MAX_CLASSES_TEXT_BYTES = (
    4 * MIB
)  # of an output: a hundred rows of a thousand labelled ones (mirrored by tensor/top_k.h)
STRING_BYTES = 64  # of the runtime's memory for each element of a BYTES tensor, on its way in and out
AMPLIFICATION = 10  # times its body: what the strings of a request may take, beyond ...
FREE_STRING_BYTES = 16 * MIB

# --- Inference --------------------------------------------------------------------------------------------------------
MAX_QUEUE_SIZE = 10_000  # requests waiting, a model
REQUEST_TIMEOUT_S = 30.0  # 504
DRAIN_TIMEOUT_S = 20.0  # with the rest of the end less than Kubernetes' terminationGracePeriodSeconds, 30
GIVE_UP_S = 1.0  # after the drain: requests that are left get 503, and their clients this long to read it
HANG_TIMEOUT_S = 30.0  # gunicorn's timeout
END_TIMEOUT_S = 1.5  # after that; then the process ends with what cannot be ended
OFF_LOOP_BYTES = 64 * KIB  # bodies above are decoded, answers above encoded, on native threads
INLINE_RUN_US = 100  # a batch predicted to run shorter than this may run on the loop's thread
INLINE_BOUND_MS = 10  # ... and is ended there if it takes longer (mirrored by backends/watchdog.pyx)
BUSY_POLL_US = 50  # about what it takes to be woken; Linux's net.core.busy_poll advises the same
MAX_MODEL_FILES = 20_000  # of a model, in all versions; ONNX exporters write one file for each of some thousand weights
MAX_MODEL_DEPTH = 32  # directories in each other, below a version
MAX_MODEL_FILE_BYTES = 2**31 - 1  # protobuf's; further weights lie in external data
MAX_LABELS_BYTES = 16 * MIB  # a label file; a million labels of 16 bytes
SUSPECT_S = 600.0  # a request that was running when a process died runs alone for so long, or until it has run
CULPRIT_S = 86_400.0  # a request or load that ends processes is refused for so long; then it may cost one more
CROWD_S = 60.0  # after a crash whose batch was too large to record, isolate this model's requests for this long
STRIKES = 3  # convict a request after this many unexplained deaths while it ran alone
SWITCH_INTERVAL_S = 0.0005  # a thread that runs Python gives way after this long (Python's default: ten times that)
LOAD_TIMEOUT_S = 600.0  # one step of a load; Kubernetes' progressDeadlineSeconds
MAX_STUCK_LOADS = 8  # steps of loads that were given up and go on all the same: threads that cannot be ended
MAX_ENDPOINTS = 1_000  # loaded at a time; requests make some of them (AMD's worker loads: name-0, name-1, ...)
MAX_CONFIG_BYTES = 256 * KIB  # a model's configuration in a file: 1,024 inputs and outputs take 150 KiB
MAX_CONFIG_OVERRIDE_BYTES = 1 * MIB  # one given with a load, in Triton's JSON, which is wordier
MAX_LABELS = 1_000_000  # lines of a label file
MAX_LABEL_BYTES = 1 * KIB  # of one of them (mirrored by tensor/top_k.pyx); ImageNet's longest has 130
MODEL_DEATHS = 3  # processes that a model ends with different requests ...
MODEL_DEATHS_S = 60.0  # ... in this time: then it is withdrawn
WITHDRAWN_S = 60.0  # the first time; twice as long each time after that ...
MAX_WITHDRAWN_S = 3600.0  # ... up to this
MAX_TRIAL_RESULTS = 1_000  # that are kept, so that a restart does not repeat trials
LOAD_RUN_TIMEOUT_S = 60.0  # one trial or warm-up run
DEFAULT_MAX_BATCH_SIZE = 64  # of a model that is batched without a configuration


def in_flight_bytes() -> int:
    """The budget for bodies received and not yet answered, of this process."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * IN_FLIGHT_MEMORY_SHARE)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The HTTP limits as one parcel; the names are those of the constants above."""

    max_head_bytes: int = MAX_HEAD_BYTES
    max_headers: int = MAX_HEADERS
    max_target_bytes: int = MAX_TARGET_BYTES
    max_body_bytes: int = MAX_BODY_BYTES
    max_inflation: int = MAX_INFLATION
    max_chunks: int = MAX_CHUNKS
    max_connections: int = MAX_CONNECTIONS
    max_pipelined: int = MAX_PIPELINED
    head_timeout_s: float = HEAD_TIMEOUT_S
    body_idle_timeout_s: float = BODY_IDLE_TIMEOUT_S
    body_min_bytes_per_s: int = BODY_MIN_BYTES_PER_S
    upload_timeout_s: float = UPLOAD_TIMEOUT_S
    keep_alive_timeout_s: float = KEEP_ALIVE_TIMEOUT_S
    write_timeout_s: float = WRITE_TIMEOUT_S
    linger_s: float = LINGER_S
    in_flight_bytes: int = field(default_factory=in_flight_bytes)
