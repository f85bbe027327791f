// Preloaded into a server: files under one path fail, or do not answer, as those of a network disk that has gone. Which
// path, with which error, and for how long a call waits, stands in a file that both sides have mapped (struct control).

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

struct control {
    std::atomic<int> error;     // what a call fails with; 0: it goes on
    std::atomic<int> block_ms;  // how long a call waits first, at most; it ends when this becomes 0
    char path[1024];            // what is affected: this and all below
};

constexpr int FILES = 65536;
control* shared = nullptr;
std::atomic<bool> regular[FILES];  // files that were opened by a path, so that reads of sockets need no look-up

__attribute__((constructor)) void map_control() {
    const char* name = getenv("FAULT_MOUNT_CONTROL");
    if (!name)
        return;
    int fd = static_cast<int>(syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC, 0));
    if (fd < 0)
        return;
    void* at = mmap(nullptr, sizeof(control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (at != MAP_FAILED)
        shared = static_cast<control*>(at);
}

bool armed() { return shared && (shared->error || shared->block_ms); }

bool is_below(const char* path) {
    size_t size = strnlen(shared->path, sizeof(shared->path));
    return size && !strncmp(path, shared->path, size) && (path[size] == '/' || !path[size]);
}

// 0, or the error that the call fails with.
int fate(const char* path) {
    if (!is_below(path))
        return 0;
    for (int waited = 0; waited < shared->block_ms; waited += 20) {
        timespec pause{0, 20'000'000};
        nanosleep(&pause, nullptr);
    }
    return shared->error;
}

int fate_of_fd(int fd) {
    char link[32] = "/proc/self/fd/", path[4096];
    char digits[12];
    int at = 0;
    for (int rest = fd; rest || !at; rest /= 10)
        digits[at++] = static_cast<char>('0' + rest % 10);
    for (size_t end = strlen(link); at; link[end] = 0)
        link[end++] = digits[--at];
    ssize_t size = syscall(SYS_readlink, link, path, sizeof(path) - 1);
    if (size <= 0)
        return 0;
    path[size] = 0;
    return fate(path);
}

bool fails(int dirfd, const char* path) {
    if (!armed() || !path)
        return false;
    int error = 0;
    if (path[0] == '/') {
        error = fate(path);
    } else if (dirfd >= 0) {  // below a directory that is open
        error = fate_of_fd(dirfd);
    }
    if (error)
        errno = error;
    return error != 0;
}

bool fails_fd(int fd) {
    if (fd < 0 || fd >= FILES || !regular[fd] || !armed())
        return false;
    int error = fate_of_fd(fd);
    if (error)
        errno = error;
    return error != 0;
}

int opened(int fd, const char* path) {
    if (fd >= 0 && fd < FILES)
        regular[fd] = strncmp(path, "/proc/", 6) != 0;
    return fd;
}

template <class F>
F next(const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define MODE(flags)                          \
    mode_t mode = 0;                         \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest;                        \
        va_start(rest, flags);               \
        mode = va_arg(rest, mode_t);         \
        va_end(rest);                        \
    }

extern "C" {

int openat(int dirfd, const char* path, int flags, ...) {
    MODE(flags)
    if (fails(dirfd, path))
        return -1;
    return opened(static_cast<int>(syscall(SYS_openat, dirfd, path, flags, mode)), path);
}

int openat64(int dirfd, const char* path, int flags, ...) {
    MODE(flags)
    return openat(dirfd, path, flags, mode);
}

int open(const char* path, int flags, ...) {
    MODE(flags)
    return openat(AT_FDCWD, path, flags, mode);
}

int open64(const char* path, int flags, ...) {
    MODE(flags)
    return openat(AT_FDCWD, path, flags, mode);
}

int close(int fd) {
    if (fd >= 0 && fd < FILES)
        regular[fd] = false;
    return static_cast<int>(syscall(SYS_close, fd));
}

DIR* opendir(const char* path) {
    static auto real = next<DIR* (*)(const char*)>("opendir");
    return fails(AT_FDCWD, path) ? nullptr : real(path);
}

DIR* fdopendir(int fd) {
    static auto real = next<DIR* (*)(int)>("fdopendir");
    return fails_fd(fd) ? nullptr : real(fd);
}

int fstatat(int dirfd, const char* path, struct stat* out, int flags) {
    if (fails(dirfd, path))
        return -1;
    return static_cast<int>(syscall(SYS_newfstatat, dirfd, path, out, flags));
}

int fstatat64(int dirfd, const char* path, struct stat64* out, int flags) {
    return fstatat(dirfd, path, reinterpret_cast<struct stat*>(out), flags);
}

int stat(const char* path, struct stat* out) { return fstatat(AT_FDCWD, path, out, 0); }

int stat64(const char* path, struct stat64* out) { return fstatat64(AT_FDCWD, path, out, 0); }

int lstat(const char* path, struct stat* out) { return fstatat(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW); }

int lstat64(const char* path, struct stat64* out) { return fstatat64(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW); }

int fstat(int fd, struct stat* out) { return fails_fd(fd) ? -1 : static_cast<int>(syscall(SYS_fstat, fd, out)); }

int fstat64(int fd, struct stat64* out) { return fstat(fd, reinterpret_cast<struct stat*>(out)); }

int statx(int dirfd, const char* path, int flags, unsigned mask, struct statx* out) {
    if (fails(dirfd, path))
        return -1;
    return static_cast<int>(syscall(SYS_statx, dirfd, path, flags, mask, out));
}

ssize_t readlink(const char* path, char* out, size_t size) {
    return fails(AT_FDCWD, path) ? -1 : syscall(SYS_readlink, path, out, size);
}

int access(const char* path, int mode) {
    return fails(AT_FDCWD, path) ? -1 : static_cast<int>(syscall(SYS_access, path, mode));
}

ssize_t read(int fd, void* out, size_t size) { return fails_fd(fd) ? -1 : syscall(SYS_read, fd, out, size); }

ssize_t pread(int fd, void* out, size_t size, off_t at) {
    return fails_fd(fd) ? -1 : syscall(SYS_pread64, fd, out, size, at);
}

ssize_t pread64(int fd, void* out, size_t size, off64_t at) { return pread(fd, out, size, at); }
}
