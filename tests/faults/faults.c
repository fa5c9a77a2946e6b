/* File operations that fail, tear or kill on purpose: a library for LD_PRELOAD.
 *
 * `fault_arm` names folders, what is to happen, and at which operation below these folders, counted from 1. Operations
 * that change something: open to write or create, write, truncate, fsync, rename, link, unlink, mkdir, rmdir. Those that
 * read: open to read, and read. Calls inside libc itself (fopen, mmap) and metadata (stat, chmod) are not seen.
 *
 * cc -shared -fPIC -O1 -o faults.so faults.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { COUNT, KILL, TEAR, FAIL, FAIL_ON };
enum operation { CHANGE, SPACE, READ }; /* SPACE: a change that a full disk refuses */

#define MOST_FDS 65536
static char roots[4][PATH_MAX];
static int root_count, kind, reading, code, process_id;
static long at, count;
static unsigned char watched[MOST_FDS];

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* `where` is a list of folders separated by colons; `from` is the operation, of those that read if `of_reading`. */
void fault_arm(const char *where, int what, long from, int of_reading, int error)
{
    root_count = 0;
    for (const char *start = where; *start && root_count < 4;) {
        size_t length = strcspn(start, ":");
        snprintf(roots[root_count++], PATH_MAX, "%.*s", (int)length, start);
        start += length + (start[length] == ':');
    }
    at = from, code = error, reading = of_reading, count = 0;
    memset(watched, 0, sizeof watched);
    kind = what;
}

/* Operations since `fault_arm`. */
long fault_count(void) { return count; }

/* From now on this process has this number, as in containers. */
void fault_pid(int number) { process_id = number; }

pid_t getpid(void) { return process_id ? process_id : (pid_t)syscall(SYS_getpid); }

static int below(int folder, const char *path)
{
    char whole[PATH_MAX * 2], link[64];
    if (!root_count || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char start[PATH_MAX] = "";
        if (folder == AT_FDCWD) {
            if (!getcwd(start, sizeof start)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, start, sizeof start - 1);
            if (length < 0) return 0;
            start[length] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", start, path);
    }
    for (int i = 0; i < root_count; i++) {
        size_t length = strlen(roots[i]);
        if (!strncmp(whole, roots[i], length) && (whole[length] == '/' || !whole[length])) return 1;
    }
    return 0;
}

static void die(void)
{
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

/* Count an operation below the roots; return whether it fails now, with errno set. */
static int fails(enum operation operation, int is_write)
{
    if ((operation == READ) != reading) return 0;
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (now == at && (kind == KILL || (kind == TEAR && !is_write))) die();
    int refused = (kind == FAIL && now == at) || (kind == FAIL_ON && now >= at);
    if (!refused || (code == ENOSPC && operation == CHANGE)) return 0;
    errno = code;
    return 1;
}

static int opened(int folder, const char *path, int flags, mode_t mode, int (*real)(int, const char *, int, ...))
{
    if (!below(folder, path)) return real(folder, path, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    int is_folder = flags & (O_DIRECTORY | O_PATH);
    if (!is_folder && fails(writes ? (flags & O_CREAT ? SPACE : CHANGE) : READ, 0)) return -1;
    int descriptor = real(folder, path, flags, mode);
    if (descriptor >= 0 && descriptor < MOST_FDS && !is_folder) watched[descriptor] = 1;
    return descriptor;
}

#define OPEN(name, parameters, folder) \
    int name parameters \
    { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        static int (*real)(int, const char *, int, ...); \
        if (!real) real = dlsym(RTLD_NEXT, "openat"); \
        return opened(folder, path, flags, mode, real); \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int directory, const char *path, int flags, ...), directory)
OPEN(openat64, (int directory, const char *path, int flags, ...), directory)

int close(int descriptor)
{
    REAL(close);
    if (descriptor >= 0 && descriptor < MOST_FDS) watched[descriptor] = 0;
    return real(descriptor);
}

static int seen(int descriptor) { return root_count && descriptor >= 0 && descriptor < MOST_FDS && watched[descriptor]; }

ssize_t write(int descriptor, const void *content, size_t size)
{
    REAL(write);
    if (seen(descriptor)) {
        if (fails(SPACE, 1)) {
            if (code == ENOSPC && size > 1) real(descriptor, content, size / 2); /* as a disk that fills up does */
            errno = code;
            return -1;
        }
        if (kind == TEAR && !reading && count == at) {
            real(descriptor, content, size / 2);
            die();
        }
    }
    return real(descriptor, content, size);
}

ssize_t read(int descriptor, void *content, size_t size)
{
    REAL(read);
    if (seen(descriptor) && fails(READ, 0)) return -1;
    return real(descriptor, content, size);
}

ssize_t pread64(int descriptor, void *content, size_t size, off64_t offset)
{
    REAL(pread64);
    if (seen(descriptor) && fails(READ, 0)) return -1;
    return real(descriptor, content, size, offset);
}

#define ON_DESCRIPTOR(name, operation, parameters, arguments) \
    int name parameters \
    { \
        REAL(name); \
        if (seen(descriptor) && fails(operation, 0)) return -1; \
        return real arguments; \
    }
ON_DESCRIPTOR(fsync, CHANGE, (int descriptor), (descriptor))
ON_DESCRIPTOR(fdatasync, CHANGE, (int descriptor), (descriptor))
ON_DESCRIPTOR(ftruncate, SPACE, (int descriptor, off_t size), (descriptor, size))
ON_DESCRIPTOR(ftruncate64, SPACE, (int descriptor, off64_t size), (descriptor, size))

#define ON_PATH(name, operation, parameters, folder, path, arguments) \
    int name parameters \
    { \
        REAL(name); \
        if (below(folder, path) && fails(operation, 0)) return -1; \
        return real arguments; \
    }
ON_PATH(mkdir, SPACE, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(mkdirat, SPACE, (int folder, const char *path, mode_t mode), folder, path, (folder, path, mode))
ON_PATH(rmdir, CHANGE, (const char *path), AT_FDCWD, path, (path))
ON_PATH(unlink, CHANGE, (const char *path), AT_FDCWD, path, (path))
ON_PATH(unlinkat, CHANGE, (int folder, const char *path, int flags), folder, path, (folder, path, flags))
ON_PATH(rename, CHANGE, (const char *old, const char *new), AT_FDCWD, new, (old, new))
ON_PATH(renameat, CHANGE, (int f, const char *old, int g, const char *new), g, new, (f, old, g, new))
ON_PATH(link, SPACE, (const char *old, const char *new), AT_FDCWD, new, (old, new))
