// Keeps a library from ending the process: its calls of exit() throw an exception instead.
//
// libjpeg, as libraries of image operators contain it, calls exit() for a file that it cannot decode; so each client
// could end the server. The library's own reference to exit() is replaced (its entry in the global offset table); the
// rest of the process keeps the real one. C code is unwound by the tables that compilers write by default.

#ifndef FASTINFER_NO_EXIT_H
#define FASTINFER_NO_EXIT_H

#include <dlfcn.h>
#include <stdexcept>

#if defined(__linux__) && defined(__LP64__)
#include <cstring>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

namespace no_exit {

[[noreturn]] inline void refuse(int) {
    throw std::runtime_error("the operator cannot handle its input, and would have ended the process");
}

// The parts of a library's dynamic section that tell where its references are.
struct Dynamic {
    const ElfW(Sym) * symbols = nullptr;
    const char* strings = nullptr;
    const ElfW(Rela) * references[2] = {nullptr, nullptr};
    size_t sizes[2] = {0, 0};

    explicit Dynamic(const link_map* map) {
        auto at = [map](const ElfW(Dyn)* entry) {  // glibc has made these absolute, other linkers have not
            uintptr_t value = entry->d_un.d_ptr;
            return reinterpret_cast<const char*>(value < map->l_addr ? value + map->l_addr : value);
        };
        for (const ElfW(Dyn)* entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
            switch (entry->d_tag) {
                case DT_SYMTAB:
                    symbols = reinterpret_cast<const ElfW(Sym)*>(at(entry));
                    break;
                case DT_STRTAB:
                    strings = at(entry);
                    break;
                case DT_RELA:
                    references[0] = reinterpret_cast<const ElfW(Rela)*>(at(entry));
                    break;
                case DT_JMPREL:
                    references[1] = reinterpret_cast<const ElfW(Rela)*>(at(entry));
                    break;
                case DT_RELASZ:
                    sizes[0] = entry->d_un.d_val;
                    break;
                case DT_PLTRELSZ:
                    sizes[1] = entry->d_un.d_val;
                    break;
            }
        }
    }
};

inline void replace(void** slot) {
    // The table may be read-only since the library was loaded.
    uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    void* start = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(slot) & ~(page - 1));
    if (mprotect(start, page, PROT_READ | PROT_WRITE) == 0)
        *slot = reinterpret_cast<void*>(&refuse);
}

}  // namespace no_exit

// library: from dlopen, with RTLD_NOW.
static inline void forbid_exit(void* library) {
    link_map* map = nullptr;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0)
        return;
    no_exit::Dynamic dynamic(map);
    if (dynamic.symbols == nullptr || dynamic.strings == nullptr)
        return;
    for (int part = 0; part < 2; part++) {
        for (size_t i = 0; i < dynamic.sizes[part] / sizeof(ElfW(Rela)); i++) {
            const ElfW(Rela) & reference = dynamic.references[part][i];
            const char* name = dynamic.strings + dynamic.symbols[reference.r_info >> 32].st_name;
            if (std::strcmp(name, "exit") == 0)
                no_exit::replace(reinterpret_cast<void**>(map->l_addr + reference.r_offset));
        }
    }
}

#else

static inline void forbid_exit(void*) {}

#endif
#endif
