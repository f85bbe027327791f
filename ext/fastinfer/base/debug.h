// Invariants: what must hold at a place in the code, whatever clients, models and disks do. Checked in a debug build
// (FASTINFER_DEBUG=1), where a violation ends the process with a line that names it; free of cost in any other.
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

// `holds` should cost nothing to compute; anything that does stands in `if DEBUG:`.
inline void invariant(bool holds, const char* what) {
    if (DEBUG && !holds) {
        fprintf(stderr, "fastinfer: invariant violated: %s\n", what);
        abort();
    }
}

}  // namespace fastinfer
