"""Every limit of the server, with its precedent. All are defaults of options of the same name (config.py).

Sizes are bytes, times are seconds unless the name says otherwise.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- HTTP head (h11 allows 16 KiB in all; nginx 4 x 8 KiB; Apache 100 fields of 8 KiB) --------------------------------
MAX_HEAD_BYTES = 16 * KIB
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 * KIB
MAX_LEADING_EMPTY_LINES = 2  # RFC 9112 §2.2 asks for at least one

# --- HTTP body --------------------------------------------------------------------------------------------------------
MAX_BODY_BYTES = 64 * MIB  # also after inflating; MLServer and Triton (from 24.12 on) default to the same
MAX_CONTROL_BODY_BYTES = 1 * MIB  # load, unload, index, hardware: small objects (nginx's default body limit)
MAX_CHUNKS = 65_536
CHUNK_FRAMING_BYTES = 16 * KIB  # framing a chunked body may add, plus ...
CHUNK_FRAMING_BYTES_PER_CHUNK = 16

# --- Connections ------------------------------------------------------------------------------------------------------
MAX_CONNECTIONS = 16_000
MAX_PIPELINED = 16  # then reading pauses
HEAD_TIMEOUT_S = 30.0  # 408
BODY_IDLE_TIMEOUT_S = 60.0  # 408; nginx's client_body_timeout
BODY_MIN_BYTES_PER_S = 1 * KIB  # 408
UPLOAD_TIMEOUT_S = 600.0  # 408
KEEP_ALIVE_TIMEOUT_S = 75.0  # nginx
WRITE_TIMEOUT_S = 60.0  # no progress of the reader: close
LINGER_S = 2.0  # after an error, so that the client can read the answer
IN_FLIGHT_MEMORY_SHARE = 0.25  # of RAM; 503 above

# --- JSON and tensors (mirrored by ext/fastinfer/_ext/tensor.pxd and decode.pxd) --------------------------------------
MAX_JSON_DEPTH = 100
MAX_RANK = 16
MAX_INPUTS = 1024  # inputs or outputs of one request

# --- Inference --------------------------------------------------------------------------------------------------------
MAX_QUEUE_SIZE = 10_000  # requests waiting, a model
REQUEST_TIMEOUT_S = 30.0  # 504
DRAIN_TIMEOUT_S = 30.0
OFF_LOOP_BYTES = 64 * KIB  # bodies above are decoded, answers above encoded, on native threads
INLINE_RUN_US = 100  # a batch predicted to run shorter than this may run on the loop's thread
LOAD_RUN_TIMEOUT_S = 60.0  # one trial or warm-up run
DEFAULT_MAX_BATCH_SIZE = 64  # of a model that is batched without a configuration
MAX_NAME_LENGTH = 128
