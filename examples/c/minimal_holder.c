/*
 * Takes part in llmlb's locks without any library:  minimal_holder PORT
 *
 * For servers that want to be seen by `llmlb status`, ended by `llmlb stop` and never started twice,
 * but want no dependency: copy `llmlb_hold`, `llmlb_still_held` and `llmlb_let_go`. What they do and
 * why is docs/lock-file.md.
 *
 *     cc minimal_holder.c -o minimal_holder
 */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Whether the path still is the file that is open. */
int llmlb_still_held(int fd, const char *path)
{
    struct stat ours, found;
    return fstat(fd, &ours) == 0 && lstat(path, &found) == 0 &&
           ours.st_dev == found.st_dev && ours.st_ino == found.st_ino;
}

/* Who guards a port, as its file says; 0 if it names no live process. */
static long holder_of(int fd)
{
    char text[4097] = "", *pid;
    if (pread(fd, text, sizeof text - 1, 0) < 0 || (pid = strstr(text, "\"pid\":")) == NULL)
        return 0;
    long holder = strtol(pid + strlen("\"pid\":"), NULL, 10);
    return holder > 0 && (kill((pid_t)holder, 0) == 0 || errno == EPERM) ? holder : 0;
}

/* Guards a port for as long as the returned descriptor is open. -1 on failure: with EWOULDBLOCK
 * another process has it, and *holder is its PID, or 0 where it can't be named. */
int llmlb_hold(const char *path, int port, long *holder)
{
    for (int tries = 0;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
        struct stat file;
        if (fd < 0)
            return -1;
        int error = 0;
        if (fstat(fd, &file) != 0)
            error = errno;
        else if (!S_ISREG(file.st_mode) || file.st_nlink > 1 || file.st_uid != geteuid())
            error = EPERM; /* not ours to lock */
        else if (flock(fd, LOCK_EX | LOCK_NB) != 0)
            error = errno;
        if (error == 0 && llmlb_still_held(fd, path)) {
            char text[128], now[32];
            time_t seconds = time(NULL);
            strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime(&seconds));
            int length = snprintf(text, sizeof text, "{\"pid\":%ld,\"started_at\":\"%s\",\"port\":%d}",
                                  (long)getpid(), now, port);
            if (fchmod(fd, 0600) == 0 && ftruncate(fd, 0) == 0 && pwrite(fd, text, length, 0) == length)
                return fd;
            error = errno;
            unlink(path); /* half a text must not stay behind */
        }
        *holder = error == EWOULDBLOCK ? holder_of(fd) : 0;
        close(fd); /* never LOCK_UN: in a forked child that frees the parent's lock */
        /* For an instant after it is taken, a lock has no name yet: look again for a second. */
        if (error != 0 && (error != EWOULDBLOCK || *holder != 0 || ++tries == 1000)) {
            errno = error;
            return -1;
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

/* Gives the port back: the file goes first, under the lock. */
void llmlb_let_go(int fd, const char *path)
{
    if (llmlb_still_held(fd, path))
        unlink(path);
    close(fd);
}

/* Where the lock file is; makes its directory. 0 if the path does not fit. */
int llmlb_lock_path(int port, char *path, size_t size)
{
    const char *named = getenv("LLMLB_LOCK_DIR"), *temporary = getenv("TMPDIR");
    char directory[2048];
    int shared = named == NULL || *named == '\0';
    snprintf(directory, sizeof directory, "%s%s",
             !shared ? named : temporary && *temporary ? temporary : "/tmp", shared ? "/llmlb" : "");
    if (mkdir(directory, 0777) == 0 && shared)
        chmod(directory, 01777); /* open to all users, as the temporary directory is */
    return snprintf(path, size, "%s/serve_%d.lock", directory, port) < (int)size;
}

int main(int argc, char **argv)
{
    char path[4096];
    long holder, port = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    if (port < 1 || port > 65535 || !llmlb_lock_path((int)port, path, sizeof path)) {
        fprintf(stderr, "usage: minimal_holder PORT\n");
        return 2;
    }
    sigset_t end; /* asked to end by `llmlb stop`, or Ctrl-C */
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigaddset(&end, SIGINT);
    sigprocmask(SIG_BLOCK, &end, NULL);
    int signal, fd = llmlb_hold(path, (int)port, &holder);
    if (fd < 0) {
        fprintf(stderr, "%s: %s (PID %ld)\n", path, strerror(errno), holder);
        return 1;
    }
    printf("guarding %ld with %s\n", port, path);
    fflush(stdout);
    sigwait(&end, &signal); /* serve */
    llmlb_let_go(fd, path);
    return 0;
}
