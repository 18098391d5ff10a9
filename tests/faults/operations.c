// Counts what a process does to the files of a folder; at a number of it the process is killed, or the disk is full.
//
// To be preloaded. `faults_arm` starts the count: mode 0 counts alone, 1 kills, 2 lets nothing more be written.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long at, mode;
static atomic_long count;

void faults_arm(const char* folder, long number, long what) {
  strncpy(root, folder, sizeof root - 1);
  at = number, mode = what;
  atomic_store(&count, 0);
}
long faults_count(void) { return atomic_load(&count); }

static int inside(const char* path) {
  char whole[2 * PATH_MAX];
  if (!root[0] || !path) return 0;
  if (path[0] != '/') {
    if (!getcwd(whole, PATH_MAX)) return 0;
    strcat(whole, "/"), strncat(whole, path, PATH_MAX - 1);
    path = whole;
  }
  return strncmp(path, root, strlen(root)) == 0;
}
static int of_file(int fd) {
  char link[64], path[PATH_MAX];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return inside(path);
}
// Whether the operation is to fail for want of room.
static int refused(int grows) {
  const long number = atomic_fetch_add(&count, 1) + 1;
  if (mode == 1 && number == at) kill(getpid(), SIGKILL), pause();
  if (mode == 2 && number >= at && grows) return errno = ENOSPC, 1;
  return 0;
}

#define REAL(name) __typeof__(name)* real = (__typeof__(name)*)dlsym(RTLD_NEXT, #name)
#define OPENS(name)                                              \
  int name(const char* path, int flags, ...) {                   \
    REAL(name);                                                  \
    va_list more;                                                \
    va_start(more, flags);                                       \
    const mode_t bits = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
    va_end(more);                                                \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) && inside(path) && refused(flags & O_CREAT)) return -1; \
    return real(path, flags, bits);                              \
  }
#define OPENS_AT(name)                                           \
  int name(int folder, const char* path, int flags, ...) {       \
    REAL(name);                                                  \
    va_list more;                                                \
    va_start(more, flags);                                       \
    const mode_t bits = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
    va_end(more);                                                \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) && inside(path) && refused(flags & O_CREAT)) return -1; \
    return real(folder, path, flags, bits);                      \
  }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t write(int fd, const void* bytes, size_t size) {
  REAL(write);
  return of_file(fd) && refused(1) ? -1 : real(fd, bytes, size);
}
ssize_t writev(int fd, const struct iovec* parts, int number) {
  REAL(writev);
  return of_file(fd) && refused(1) ? -1 : real(fd, parts, number);
}
ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t where) {
  REAL(pwrite64);
  return of_file(fd) && refused(1) ? -1 : real(fd, bytes, size, where);
}
int ftruncate64(int fd, off64_t size) {
  REAL(ftruncate64);
  return of_file(fd) && refused(1) ? -1 : real(fd, size);
}
int fsync(int fd) {
  REAL(fsync);
  return of_file(fd) && refused(0) ? -1 : real(fd);
}
int rename(const char* from, const char* to) {
  REAL(rename);
  return (inside(from) || inside(to)) && refused(0) ? -1 : real(from, to);
}
int unlink(const char* path) {
  REAL(unlink);
  return inside(path) && refused(0) ? -1 : real(path);
}
int unlinkat(int folder, const char* path, int flags) {
  REAL(unlinkat);
  return (of_file(folder) || inside(path)) && refused(0) ? -1 : real(folder, path, flags);
}
int mkdir(const char* path, mode_t bits) {
  REAL(mkdir);
  return inside(path) && refused(1) ? -1 : real(path, bits);
}
int rmdir(const char* path) {
  REAL(rmdir);
  return inside(path) && refused(0) ? -1 : real(path);
}
