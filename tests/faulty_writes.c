/* Stands between a process and libc: one of its calls that change files below a folder fails, or is its last.

   Counted are calls that open a file to write, write, sync, rename and make folders. Each is a line of the journal:
   `O path`, `W path`, `S path`, `R from to kept`, `M path`; `kept` is a hard link to the file that the rename replaced,
   or `-`. tests/faults.py builds this, preloads it, and arms it in each child. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long fails_at = -1; /* the number of the call, from 0; -1: none */
static int fault;          /* errno; 0: half is written; -1: the process is killed */
static long calls;
static int journal = -1;

/* Only calls below `below` count from now on. */
void faults_arm(const char *below, long nth, int number, const char *file)
{
    snprintf(root, sizeof root, "%s/", below);
    fails_at = nth;
    fault = number;
    calls = 0;
    journal = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
}

static int counts(const char *path)
{
    return journal >= 0 && strncmp(path, root, strlen(root)) == 0;
}

/* Whether this call is the one that fails. */
static int fails(const char *kind, const char *path, const char *to, const char *kept)
{
    char line[4 * PATH_MAX];
    int here = calls++ == fails_at;
    if (here && fault < 0)
        kill(getpid(), SIGKILL);
    if (here && fault > 0) {
        errno = fault;
        kind = "F";
    }
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%s\n", kind, path, to ? to : "", kept ? kept : "");
    syscall(SYS_write, journal, line, length);
    if (here && fault > 0)
        errno = fault;
    return here && fault > 0;
}

static int halves(void)
{
    return journal >= 0 && calls == fails_at + 1 && fault == 0;
}

static const char *path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *absolute(const char *path, char *whole)
{
    if (path[0] == '/' || !getcwd(whole, PATH_MAX))
        return path;
    strncat(whole, "/", PATH_MAX - strlen(whole) - 1);
    strncat(whole, path, PATH_MAX - strlen(whole) - 1);
    return whole;
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define WRITES(name, parameters, whole, half)                                            \
    ssize_t name parameters                                                              \
    {                                                                                    \
        NEXT(name);                                                                      \
        char path[PATH_MAX];                                                             \
        if (journal < 0 || fd == journal || !counts(path_of(fd, path)))                  \
            return whole;                                                                \
        if (fails("W", path, 0, 0))                                                      \
            return -1;                                                                   \
        return halves() ? half : whole;                                                  \
    }

WRITES(write, (int fd, const void *from, size_t n), next(fd, from, n), next(fd, from, n > 1 ? n / 2 : n))
WRITES(pwrite, (int fd, const void *from, size_t n, off_t at), next(fd, from, n, at), next(fd, from, n > 1 ? n / 2 : n, at))
WRITES(pwrite64, (int fd, const void *from, size_t n, off64_t at), next(fd, from, n, at), next(fd, from, n > 1 ? n / 2 : n, at))
WRITES(writev, (int fd, const struct iovec *from, int n), next(fd, from, n), next(fd, from, n > 1 ? n / 2 : n))

#define SYNCS(name)                                                                      \
    int name(int fd)                                                                     \
    {                                                                                    \
        NEXT(name);                                                                      \
        char path[PATH_MAX];                                                             \
        if (journal >= 0 && counts(path_of(fd, path)) && fails("S", path, 0, 0))         \
            return -1;                                                                   \
        return next(fd);                                                                 \
    }

SYNCS(fsync)
SYNCS(fdatasync)

static int refuses_open(const char *path, int flags)
{
    char whole[PATH_MAX];
    if (journal < 0 || (flags & O_ACCMODE) == O_RDONLY)
        return 0;
    path = absolute(path, whole);
    return counts(path) && fails(flags & O_TRUNC ? "T" : "O", path, 0, 0);
}

#define OPENS(name, parameters, opened)                                                  \
    int name parameters                                                                  \
    {                                                                                    \
        NEXT(name);                                                                      \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = va_arg(rest, mode_t);                                              \
        va_end(rest);                                                                    \
        return refuses_open(path, flags) ? -1 : opened;                                  \
    }

OPENS(open, (const char *path, int flags, ...), next(path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), next(path, flags, mode))
OPENS(openat, (int folder, const char *path, int flags, ...), next(folder, path, flags, mode))
OPENS(openat64, (int folder, const char *path, int flags, ...), next(folder, path, flags, mode))

static int refuses_rename(const char *from, const char *to)
{
    char whole_from[PATH_MAX], whole_to[PATH_MAX], kept[PATH_MAX + 32];
    if (journal < 0)
        return 0;
    from = absolute(from, whole_from);
    to = absolute(to, whole_to);
    if (!counts(to))
        return 0;
    snprintf(kept, sizeof kept, "%sjournal-%ld-%d", root, calls, getpid());
    if (fault >= 0 || syscall(SYS_linkat, AT_FDCWD, to, AT_FDCWD, kept, 0) != 0)
        strcpy(kept, "-");
    return fails("R", from, to, kept);
}

int rename(const char *from, const char *to)
{
    NEXT(rename);
    return refuses_rename(from, to) ? -1 : next(from, to);
}

int renameat(int folder, const char *from, int other, const char *to)
{
    NEXT(renameat);
    return refuses_rename(from, to) ? -1 : next(folder, from, other, to);
}

int mkdir(const char *path, mode_t mode)
{
    NEXT(mkdir);
    char whole[PATH_MAX];
    if (journal >= 0 && counts(absolute(path, whole)) && fails("M", absolute(path, whole), 0, 0))
        return -1;
    return next(path, mode);
}
