// Fails calls on files below a folder, as a full or broken disk does. Loaded by LD_PRELOAD.
//
//   DISK_FAULTS_BELOW    the folder; without it nothing fails
//   DISK_FAULTS_CALLS    kinds of calls, with commas: open write truncate sync rename mkdir unlink
//   DISK_FAULTS_AT       the number of the call that fails, from 1; 0 only counts
//   DISK_FAULTS_EFFECT   EIO, ENOSPC, kill (SIGKILL), or a number of milliseconds to wait
//   DISK_FAULTS_STAYS    1 if all later calls fail too; a write may then fail halfway
//   DISK_FAULTS_COUNTER  8 bytes in which all processes count together; else each counts alone
//
// "open" counts if the file is opened for writing. Calls that never pass libc's table of symbols are
// not seen: those of stdio's buffers, and renames by Rust's rustix.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name)                                \
  static __typeof__(&name) real;                  \
  if (real == NULL) real = dlsym(RTLD_NEXT, #name)

static atomic_long own_count;
static atomic_long* shared_count;

// Counts.

static atomic_long* counter(void) {
  const char* file = getenv("DISK_FAULTS_COUNTER");
  if (file == NULL) return &own_count;
  if (shared_count == NULL) {
    static __typeof__(&open) really_open;
    if (really_open == NULL) really_open = dlsym(RTLD_NEXT, "open");
    int fd = really_open(file, O_RDWR | O_CLOEXEC);
    void* mapped = mmap(NULL, sizeof(atomic_long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) abort();
    shared_count = mapped;
  }
  return shared_count;
}

static int is_chosen(const char* kind) {
  const char* kinds = getenv("DISK_FAULTS_CALLS");
  size_t length = strlen(kind);
  while (kinds != NULL && *kinds) {
    size_t next = strcspn(kinds, ",");
    if (next == length && strncmp(kinds, kind, length) == 0) return 1;
    kinds += next + (kinds[next] == ',');
  }
  return 0;
}

enum { PASS, FAIL, HALF };  // HALF: a write that takes a part of its bytes

// Counts a call on a file below the folder, and says what becomes of it. Sets errno for FAIL.
static int strike(const char* kind) {
  if (!is_chosen(kind)) return PASS;
  long number = atomic_fetch_add(counter(), 1) + 1;
  const char* at = getenv("DISK_FAULTS_AT");
  long first = at ? atol(at) : 0;
  int stays = getenv("DISK_FAULTS_STAYS") != NULL;
  if (first == 0 || number < first || (number > first && !stays)) return PASS;

  const char* effect = getenv("DISK_FAULTS_EFFECT");
  if (effect == NULL) abort();
  if (strcmp(effect, "kill") == 0) kill(getpid(), SIGKILL);
  if (effect[0] >= '0' && effect[0] <= '9') {
    long wait = atol(effect);
    struct timespec left = {wait / 1000, wait % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {
    }
    return PASS;
  }
  int is_full = strcmp(effect, "ENOSPC") == 0;
  if (is_full && stays && number == first && strcmp(kind, "write") == 0) return HALF;
  errno = is_full ? ENOSPC : EIO;
  return FAIL;
}

// Paths.

static int is_below(const char* path) {
  const char* folder = getenv("DISK_FAULTS_BELOW");
  size_t length = strlen(folder);
  return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static int is_active(void) { return getenv("DISK_FAULTS_BELOW") != NULL; }

static int fd_is_below(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = '\0';
  return is_below(path);
}

static int path_is_below(int folder, const char* path) {
  if (path[0] == '/') return is_below(path);
  if (folder != AT_FDCWD) return fd_is_below(folder);
  char whole[PATH_MAX];
  if (getcwd(whole, sizeof whole) == NULL) return 0;
  size_t size = strlen(whole);
  snprintf(whole + size, sizeof whole - size, "/%s", path);
  return is_below(whole);
}

static int strike_fd(const char* kind, int fd) {
  return is_active() && fd_is_below(fd) ? strike(kind) : PASS;
}

static int strike_path(const char* kind, int folder, const char* path) {
  return is_active() && path_is_below(folder, path) ? strike(kind) : PASS;
}

static int strike_open(int folder, const char* path, int flags) {
  int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
  return writes ? strike_path("open", folder, path) : PASS;
}

// Opening.

#define OPEN(name)                                          \
  int name(const char* path, int flags, ...) {              \
    REAL(name);                                             \
    va_list more;                                           \
    va_start(more, flags);                                  \
    mode_t mode = va_arg(more, mode_t);                     \
    va_end(more);                                           \
    if (strike_open(AT_FDCWD, path, flags)) return -1;      \
    return real(path, flags, mode);                         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                        \
  int name(int folder, const char* path, int flags, ...) {  \
    REAL(name);                                             \
    va_list more;                                           \
    va_start(more, flags);                                  \
    mode_t mode = va_arg(more, mode_t);                     \
    va_end(more);                                           \
    if (strike_open(folder, path, flags)) return -1;        \
    return real(folder, path, flags, mode);                 \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                               \
  FILE* name(const char* path, const char* mode) {                                \
    REAL(name);                                                                   \
    int writes = strpbrk(mode, "wa+") != NULL;                                    \
    if (writes && strike_path("open", AT_FDCWD, path)) return NULL;               \
    return real(path, mode);                                                      \
  }
FOPEN(fopen)
FOPEN(fopen64)

// Writing.

ssize_t write(int fd, const void* bytes, size_t size) {
  REAL(write);
  int fate = strike_fd("write", fd);
  if (fate == HALF && size < 2) errno = ENOSPC;
  if (fate == FAIL || (fate == HALF && size < 2)) return -1;
  return real(fd, bytes, fate == HALF ? size / 2 : size);
}

#define PWRITE(name, offset_type)                                              \
  ssize_t name(int fd, const void* bytes, size_t size, offset_type offset) {   \
    REAL(name);                                                                \
    int fate = strike_fd("write", fd);                                         \
    if (fate == FAIL) return -1;                                               \
    return real(fd, bytes, fate == HALF ? (size + 1) / 2 : size, offset);      \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec* parts, int count) {
  REAL(writev);
  int fate = strike_fd("write", fd);
  if (fate == FAIL) return -1;
  return real(fd, parts, fate == HALF ? (count + 1) / 2 : count);
}

#define SENDFILE(name, offset_type)                                            \
  ssize_t name(int to, int from, offset_type* offset, size_t size) {           \
    REAL(name);                                                                \
    int fate = strike_fd("write", to);                                         \
    if (fate == FAIL) return -1;                                               \
    return real(to, from, offset, fate == HALF ? (size + 1) / 2 : size);       \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(
    int from, off64_t* from_offset, int to, off64_t* to_offset, size_t size, unsigned flags) {
  REAL(copy_file_range);
  int fate = strike_fd("write", to);
  if (fate == FAIL) return -1;
  return real(from, from_offset, to, to_offset, fate == HALF ? (size + 1) / 2 : size, flags);
}

// One line for each call that has nothing to add: it fails, or it is the real one.

#define ON_FD(name, kind, parameters, arguments)  \
  int name parameters {                           \
    REAL(name);                                   \
    return strike_fd(kind, fd) ? -1 : real arguments; \
  }
ON_FD(ftruncate, "truncate", (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, "truncate", (int fd, off64_t size), (fd, size))
ON_FD(fallocate, "truncate", (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
ON_FD(fallocate64, "truncate", (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
ON_FD(fsync, "sync", (int fd), (fd))
ON_FD(fdatasync, "sync", (int fd), (fd))

#define ON_PATH(name, kind, folder, parameters, arguments)      \
  int name parameters {                                         \
    REAL(name);                                                 \
    return strike_path(kind, folder, path) ? -1 : real arguments; \
  }
#define IN_TWO (int folder, const char* path, int to_folder, const char* to)
ON_PATH(truncate, "truncate", AT_FDCWD, (const char* path, off_t size), (path, size))
ON_PATH(rename, "rename", AT_FDCWD, (const char* path, const char* to), (path, to))
ON_PATH(renameat, "rename", folder, IN_TWO, (folder, path, to_folder, to))
ON_PATH(renameat2, "rename", folder,
        (int folder, const char* path, int to_folder, const char* to, unsigned flags),
        (folder, path, to_folder, to, flags))
ON_PATH(link, "rename", AT_FDCWD, (const char* path, const char* to), (path, to))
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char* path, mode_t mode), (path, mode))
ON_PATH(mkdirat, "mkdir", folder, (int folder, const char* path, mode_t mode), (folder, path, mode))
ON_PATH(unlink, "unlink", AT_FDCWD, (const char* path), (path))
ON_PATH(unlinkat, "unlink", folder, (int folder, const char* path, int flags),
        (folder, path, flags))
ON_PATH(rmdir, "unlink", AT_FDCWD, (const char* path), (path))
ON_PATH(remove, "unlink", AT_FDCWD, (const char* path), (path))
