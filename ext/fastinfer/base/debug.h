// Invariants: conditions that hold at a place in the code, whatever clients, models and disks do. A debug build
// (FASTINFER_DEBUG=1) checks them, and ends the process with a line that names the violated one; others do not check.
// Does not live here: conditions that a caller may break, which raise.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace fastinfer {

#ifdef FASTINFER_DEBUG
constexpr bool DEBUG = true;
#else
constexpr bool DEBUG = false;
#endif

// `holds` should cost nothing to compute; a costly check stands in `if DEBUG:`.
inline void invariant(bool holds, const char* what) {
    if (DEBUG && !holds) {
        fprintf(stderr, "fastinfer: invariant violated: %s\n", what);
        abort();
    }
}

}  // namespace fastinfer
