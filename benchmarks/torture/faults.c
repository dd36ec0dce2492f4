/* Makes the n-th call of a kind fail, among those of libc that touch a folder. Preloaded by tests/torture/faults.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OPEN, READ, STAT, LIST, WRITE, FSYNC, RENAME, UNLINK, MKDIR, KINDS };

static char root[PATH_MAX];
static atomic_int armed;
static int failing, number, lasting, torn;
static long nth;
static atomic_long calls[KINDS];

/* kind -1 counts only; `lasting` fails at every call from the n-th on; `torn` writes half before the first failure. */
void faults_arm(const char *folder, int kind, long n, int errno_, int lasting_, int torn_) {
    strncpy(root, folder, sizeof root - 1);
    failing = kind, nth = n, number = errno_, lasting = lasting_, torn = torn_;
    for (int each = 0; each < KINDS; each++) calls[each] = 0;
    armed = 1;
}

long faults_calls(int kind) { return calls[kind]; }

static int is_under(const char *path) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int touches(int folder, const char *name) {
    char path[PATH_MAX];
    if (!armed || !name) return 0;
    if (name[0] == '/') return is_under(name);
    if (folder != AT_FDCWD) return path_of(folder, path) && is_under(path);
    return syscall(SYS_getcwd, path, sizeof path) > 0 && is_under(path);
}

static int touches_open(int descriptor) {
    char path[PATH_MAX];
    return armed && path_of(descriptor, path) && is_under(path);
}

static int fails(int kind) {
    long call = atomic_fetch_add(&calls[kind], 1);
    if (kind != failing || !(lasting ? call >= nth : call == nth)) return 0;
    errno = number;
    return 1;
}

#define NEXT(name) ({ static __typeof__(&name) next; if (!next) next = dlsym(RTLD_NEXT, #name); next; })

#define OPENS(name)                                                                    \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        if (touches(AT_FDCWD, path) && fails(OPEN)) return -1;                         \
        return NEXT(name)(path, flags, mode);                                          \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                 \
    int name(int at, const char *path, int flags, ...) {                               \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        if (touches(at, path) && fails(OPEN)) return -1;                               \
        return NEXT(name)(at, path, flags, mode);                                      \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t read(int of, void *to, size_t size) {
    if (touches_open(of) && fails(READ)) return -1;
    return NEXT(read)(of, to, size);
}
#define READS_AT(name, type)                                   \
    ssize_t name(int of, void *to, size_t size, type place) {  \
        if (touches_open(of) && fails(READ)) return -1;        \
        return NEXT(name)(of, to, size, place);                \
    }
READS_AT(pread, off_t)
READS_AT(pread64, off64_t)

ssize_t write(int of, const void *from, size_t size) {
    if (size && touches_open(of) && fails(WRITE)) {
        if (!torn || size < 2) return -1;
        torn = 0, lasting = 1; /* half of it is written, and nothing after that */
        return NEXT(write)(of, from, size / 2);
    }
    return NEXT(write)(of, from, size);
}

#define OF_DESCRIPTOR(name, kind)                    \
    int name(int of) {                               \
        if (touches_open(of) && fails(kind)) return -1; \
        return NEXT(name)(of);                       \
    }
OF_DESCRIPTOR(fsync, FSYNC)
OF_DESCRIPTOR(fdatasync, FSYNC)

int rename(const char *from, const char *to) {
    if (touches(AT_FDCWD, to) && fails(RENAME)) return -1;
    return NEXT(rename)(from, to);
}
int renameat(int one, const char *from, int other, const char *to) {
    if (touches(other, to) && fails(RENAME)) return -1;
    return NEXT(renameat)(one, from, other, to);
}
int renameat2(int one, const char *from, int other, const char *to, unsigned flags) {
    if (touches(other, to) && fails(RENAME)) return -1;
    return NEXT(renameat2)(one, from, other, to, flags);
}
int link(const char *from, const char *to) {
    if (touches(AT_FDCWD, to) && fails(RENAME)) return -1;
    return NEXT(link)(from, to);
}
int linkat(int one, const char *from, int other, const char *to, int flags) {
    if (touches(other, to) && fails(RENAME)) return -1;
    return NEXT(linkat)(one, from, other, to, flags);
}

#define OF_PATH(name, kind)                                      \
    int name(const char *path) {                                 \
        if (touches(AT_FDCWD, path) && fails(kind)) return -1;   \
        return NEXT(name)(path);                                 \
    }
OF_PATH(unlink, UNLINK)
OF_PATH(rmdir, UNLINK)

int unlinkat(int at, const char *path, int flags) {
    if (touches(at, path) && fails(UNLINK)) return -1;
    return NEXT(unlinkat)(at, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    if (touches(AT_FDCWD, path) && fails(MKDIR)) return -1;
    return NEXT(mkdir)(path, mode);
}
DIR *opendir(const char *path) {
    if (touches(AT_FDCWD, path) && fails(LIST)) return NULL;
    return NEXT(opendir)(path);
}
DIR *fdopendir(int of) {
    if (touches_open(of) && fails(LIST)) return NULL;
    return NEXT(fdopendir)(of);
}

#define STATS(name, type)                                        \
    int name(const char *path, struct type *to) {                \
        if (touches(AT_FDCWD, path) && fails(STAT)) return -1;   \
        return NEXT(name)(path, to);                             \
    }
STATS(stat, stat)
STATS(lstat, stat)
STATS(stat64, stat64)
STATS(lstat64, stat64)

#define STATS_AT(name, type)                                             \
    int name(int at, const char *path, struct type *to, int flags) {     \
        if (touches(at, path) && fails(STAT)) return -1;                 \
        return NEXT(name)(at, path, to, flags);                          \
    }
STATS_AT(fstatat, stat)
STATS_AT(fstatat64, stat64)
