/* Storage that fails or is slow, for one program: loaded with LD_PRELOAD, it answers
 * calls that create, write or rename below STORAGE_BELOW by the rules in STORAGE_FAULTS:
 *
 *   CALL:PART:FIRST:TIMES:ERRNO:MS;...
 *
 * CALL is create, write, mkdir or rename; PART is in the path. From the FIRST such call
 * on (1 is the first), TIMES calls wait MS milliseconds and, if ERRNO is not 0, fail
 * with it and do nothing.
 *
 * Files that are open for writing are noted in STORAGE_OPEN, one empty file each, named
 * by process and descriptor, whose link target is the path: a store that takes files when
 * they are closed has not got them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(result, name, ...)                                                        \
  static result (*real)(__VA_ARGS__);                                                  \
  if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define RULES 16
static struct {
  char call[16], part[256];
  long first, times, number, ms, seen;
} rules[RULES];
static int rule_count;
static char below[PATH_MAX], opened[PATH_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
  char *text = getenv("STORAGE_FAULTS"), *folder = getenv("STORAGE_BELOW");
  char *notes = getenv("STORAGE_OPEN");
  snprintf(below, sizeof below, "%s", folder ? folder : "/nowhere");
  snprintf(opened, sizeof opened, "%s", notes ? notes : "");
  char *copy = strdup(text ? text : ""), *rest = copy, *rule;
  while ((rule = strsep(&rest, ";")) && rule_count < RULES) {
    if (!*rule) continue;
    if (sscanf(rule, "%15[^:]:%255[^:]:%ld:%ld:%ld:%ld", rules[rule_count].call,
               rules[rule_count].part, &rules[rule_count].first,
               &rules[rule_count].times, &rules[rule_count].number,
               &rules[rule_count].ms) != 6) {
      fprintf(stderr, "storage_faults: bad rule %s\n", rule);
      _exit(99);
    }
    rule_count++;
  }
  free(copy);
}

static const char *absolute(int dir, const char *path, char *buffer) {
  if (path && path[0] == '/') return path;
  char link[64];
  snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d",
           dir);
  ssize_t length = readlink(link, buffer, PATH_MAX - 1);
  if (length < 0) return "";
  buffer[length] = 0;
  if (path) {
    strncat(buffer, "/", PATH_MAX - strlen(buffer) - 1);
    strncat(buffer, path, PATH_MAX - strlen(buffer) - 1);
  }
  return buffer;
}

/* Waits; 0, or the number of the error that the call is to have. */
static int fault(const char *call, const char *path) {
  long number = 0, ms = 0;
  if (strncmp(path, below, strlen(below))) return 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < rule_count; i++) {
    if (strcmp(rules[i].call, call) || !strstr(path, rules[i].part)) continue;
    long n = ++rules[i].seen;
    if (n < rules[i].first || n >= rules[i].first + rules[i].times) continue;
    ms += rules[i].ms;
    if (rules[i].number) number = rules[i].number;
  }
  pthread_mutex_unlock(&lock);
  struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
  if (ms) nanosleep(&pause, 0);
  return number;
}

static void note(int fd, const char *path) {
  if (fd < 0 || !*opened || strncmp(path, below, strlen(below))) return;
  char name[PATH_MAX + 32];
  snprintf(name, sizeof name, "%s/%d.%d", opened, getpid(), fd);
  unlink(name);
  if (symlink(path, name)) perror("storage_faults");
}

static void forget(int fd) {
  if (!*opened) return;
  char name[PATH_MAX + 32];
  snprintf(name, sizeof name, "%s/%d.%d", opened, getpid(), fd);
  int before = errno;
  unlink(name);
  errno = before;
}

static int opening(int dir, const char *path, int flags, mode_t mode) {
  REAL(int, "openat", int, const char *, int, ...);
  char buffer[PATH_MAX];
  const char *whole = "";
  int writes = (flags & O_ACCMODE) != O_RDONLY;
  if (writes) {
    whole = absolute(dir, path, buffer);
    int number = fault(flags & O_CREAT ? "create" : "open", whole);
    if (number) return errno = number, -1;
  }
  int fd = real(dir, path, flags, mode);
  if (writes) note(fd, whole);
  return fd;
}

#define MODE(flags)                                                                    \
  mode_t mode = 0;                                                                     \
  if (flags & (O_CREAT | O_TMPFILE)) {                                                 \
    va_list more;                                                                      \
    va_start(more, flags);                                                             \
    mode = va_arg(more, mode_t);                                                       \
    va_end(more);                                                                      \
  }

int open(const char *path, int flags, ...) {
  MODE(flags) return opening(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE(flags) return opening(AT_FDCWD, path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
  MODE(flags) return opening(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
  MODE(flags) return opening(dir, path, flags, mode);
}

static int writing(int fd) {
  char buffer[PATH_MAX];
  return rule_count ? fault("write", absolute(fd, 0, buffer)) : 0;
}

ssize_t write(int fd, const void *data, size_t count) {
  REAL(ssize_t, "write", int, const void *, size_t);
  int number = writing(fd);
  return number ? (errno = number, -1) : real(fd, data, count);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  int number = writing(fd);
  return number ? (errno = number, -1) : real(fd, parts, count);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  char buffer[PATH_MAX];
  int number = fault("mkdir", absolute(AT_FDCWD, path, buffer));
  return number ? (errno = number, -1) : real(path, mode);
}
int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  char buffer[PATH_MAX];
  int number = fault("rename", absolute(AT_FDCWD, from, buffer));
  return number ? (errno = number, -1) : real(from, to);
}
int close(int fd) {
  REAL(int, "close", int);
  forget(fd);
  return real(fd);
}
