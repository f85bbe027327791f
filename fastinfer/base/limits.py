"""Every limit of the server, with its precedent. Most are defaults of options with the same name (config/server.py);
those under "fixed" are not.

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
MAX_LOAD_BODY_BYTES = 1 * MIB  # a load with a model's configuration in it (nginx's default body limit)
MAX_CONTROL_VALUES = 10_000  # JSON values in such a body; a configuration in it is one value, a string
MAX_INFLATION = 100  # inflated by compressed size, beyond the first MiB; JSON of random numbers has 3, of text 10
FREE_INFLATED_BYTES = 1 * MIB
MAX_CHUNKS = 65_536
CHUNK_FRAMING_BYTES = 16 * KIB  # framing bytes that a chunked body may add, plus ...
CHUNK_FRAMING_BYTES_PER_CHUNK = 16
MIN_COMPRESSED_BYTES = 1 * KIB  # smaller answers are not worth compressing
KEPT_BODY_BYTES = 32 * MIB  # memory of bodies, kept for reuse for a few seconds: enough for twenty images as text
MAX_SKIPPED_BODY_BYTES = 64 * KIB  # of a refused request: read and discarded, so that the connection stays usable

# --- Connections ------------------------------------------------------------------------------------------------------
MAX_CONNECTIONS = 16_000
MAX_PIPELINED = 16  # requests of a connection; then reading pauses
MAX_AWAITED_ANSWER_BYTES = 1 * MIB  # waiting answers of a connection, each counted as its largest; then reading pauses
HEAD_TIMEOUT_S = 30.0  # 408
BODY_IDLE_TIMEOUT_S = 60.0  # 408; nginx's client_body_timeout
BODY_MIN_BYTES_PER_S = 1 * KIB  # 408
UPLOAD_TIMEOUT_S = 600.0  # 408
KEEP_ALIVE_TIMEOUT_S = 75.0  # nginx
WRITE_TIMEOUT_S = 60.0  # without progress of the reader: the connection is closed
PRESSED_SHARE = 0.75  # of the budget for requests in flight; above it, clients that hold memory must make progress:
PRESSED_IDLE_S = 2.0  # an upload within this time ...
PRESSED_BYTES_PER_S = 64 * KIB  # ... at this rate; a reader must take a quarter of its answer in about four seconds
LINGER_S = 2.0  # the connection stays open after an error, so that the client can read the answer
MAX_LINGERS = 15  # LINGER_S periods while the client still sends: nginx's lingering_time
DRAIN_IDLE_S = 1.0  # while draining: an idle connection is given this long to send one more request
HALF_CLOSED_PROBE_S = 0.25  # after this time, a probe finds out whether a half-closed client is still connected
COLLECTED_OBJECTS = 20_000  # collector threshold of generation 0 (Python's default: 700)
READ_BUFFER_BYTES = 64 * KIB  # shared by all connections; libuv's suggestion
MAX_CACHED_HEADS = 512  # parsed request heads in the cache ...
MAX_CACHED_HEAD_BYTES = 4 * KIB  # ... of at most this size (mirrored by http/head_cache.pyx)
IN_FLIGHT_MEMORY_SHARE = 0.25  # of RAM; 503 above

# --- JSON and tensors, fixed (mirrored by codec/json.pxd, codec/decoder.pxd, codec/data.pyx, tensor/tensor.pxd) -------
MAX_JSON_DEPTH = 100
MAX_RANK = 16
MAX_INPUTS = 1024  # inputs or outputs of one request
MAX_NAME_BYTES = 4 * KIB  # of an input or output; names become Python strings on the loop's thread, so they are short
MAX_ID_BYTES = 1 * MIB  # of a request, for the same reason
MAX_CLASSES = 10_000  # of a row; ImageNet-21k has 21,841, too many to read as text
MAX_CLASSES_TEXT_BYTES = 4 * MIB  # of an output: 100 rows of 1,000 labelled classes (mirrored by tensor/top_k.h)
STRING_BYTES = 64  # of the runtime's memory for each element of a BYTES input or output
AMPLIFICATION = 10  # memory of a request's strings by the size of its body, beyond ...
FREE_STRING_BYTES = 16 * MIB

# --- Inference --------------------------------------------------------------------------------------------------------
MAX_QUEUE_SIZE = 10_000  # waiting requests of a model
REQUEST_TIMEOUT_S = 30.0  # 504
DRAIN_TIMEOUT_S = 20.0  # with the rest of the shutdown less than Kubernetes' terminationGracePeriodSeconds, 30
GIVE_UP_S = 1.0  # after the drain: the remaining requests get 503, and their clients this long to read it
HANG_TIMEOUT_S = 30.0  # gunicorn's timeout
END_TIMEOUT_S = 1.5  # after that; then the process exits even if some work still runs
OFF_LOOP_BYTES = 64 * KIB  # larger bodies are decoded, and larger answers encoded, on native threads
INLINE_RUN_US = 100  # a batch predicted to run shorter than this may run on the loop's thread
INLINE_BOUND_MS = 10  # ... and is terminated there if it takes longer (mirrored by backends/watchdog.pyx)
BUSY_POLL_US = 50  # about the time of a wake-up; Linux recommends the same for net.core.busy_poll
MAX_MODEL_FILES = 20_000  # of a model, in all versions; ONNX exporters may write a file for each of 1,000s of weights
MAX_MODEL_DEPTH = 32  # nested directories below a version
MAX_MODEL_FILE_BYTES = 2**31 - 1  # protobuf's limit; further weights are in external data
MAX_LABELS_BYTES = 16 * MIB  # of a label file: a million labels of 16 bytes
SUSPECT_S = 600.0  # a request that was running when a process died runs alone for this long, or until it has run
CULPRIT_S = 86_400.0  # a request or load that ends processes is refused for this long; then it may end one more
CROWD_S = 60.0  # after a crash whose batch was too large to record, isolate this model's requests for this long
STRIKES = 3  # convict a request after this many unexplained deaths while it ran alone
SWITCH_INTERVAL_S = 0.0005  # how long a thread holds the GIL if others wait for it (Python's default: ten times that)
LOAD_TIMEOUT_S = 600.0  # one step of a load; Kubernetes' progressDeadlineSeconds
MAX_STUCK_LOADS = 8  # steps of loads that were given up and still run: threads cannot be ended
MAX_STEPS = 256  # of an ensemble ...
MAX_STEPS_IN_ALL = 1_024  # ... and with the steps of ensembles among them: a request makes a child request for each
MAX_STEP_TENSORS = 4_096  # that the steps of an ensemble take and make: they are checked on the loop's thread
MAX_STEP_DEPTH = 16  # ensembles and chains within each other
MAX_ENDPOINTS = 1_000  # loaded at a time; clients can create them (AMD's worker loads: name-0, name-1, ...)
MAX_CONFIG_BYTES = 256 * KIB  # a model's configuration in a file: 1,024 inputs and outputs take 150 KiB
MAX_CONFIG_OVERRIDE_BYTES = 1 * MIB  # a configuration given with a load, in Triton's JSON, which is longer
MAX_LABELS = 1_000_000  # lines of a label file
MAX_LABEL_BYTES = 1 * KIB  # of one of them (mirrored by tensor/top_k.pyx); ImageNet's longest has 130
MODEL_DEATHS = 3  # processes that a model ends with different requests ...
MODEL_DEATHS_S = 60.0  # ... within this time: then the model is withdrawn
WITHDRAWN_S = 60.0  # the first withdrawal; each further one takes twice as long ...
MAX_WITHDRAWN_S = 3600.0  # ... up to this
MAX_TRIAL_RESULTS = 1_000  # results that are kept, so that a restart does not repeat trials
LOAD_RUN_TIMEOUT_S = 60.0  # one trial or warm-up run
DEFAULT_MAX_BATCH_SIZE = 64  # rows, for a model that is batched without a configuration


def in_flight_bytes() -> int:
    """This process's budget for bodies that are received and not yet answered."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * IN_FLIGHT_MEMORY_SHARE)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The HTTP limits in one object; the names are those of the constants above."""

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
