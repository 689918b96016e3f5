/* The system calls of a lock, with nothing around them: what the library is measured against. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int same(int fd, const char *path)
{
    struct stat ours, found;
    return fstat(fd, &ours) == 0 && ours.st_nlink != 0 && lstat(path, &found) == 0 &&
           ours.st_dev == found.st_dev && ours.st_ino == found.st_ino;
}

/* Acquires and releases, as the library does where nobody else is. 0 on success. */
int baseline_acquire_release(const char *dir, const char *name, const char *path)
{
    char text[512], when[32];
    struct stat st;
    struct timespec now;
    struct tm tm;
    int d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = openat(d, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (d < 0 || fd < 0 || fstat(fd, &st) != 0 || st.st_nlink != 1)
        return 1;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || st.st_uid != geteuid() || !same(fd, path))
        return 2;
    if (pread(fd, text, sizeof text, 0) != 0)
        return 3;
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &tm));
    int len = snprintf(text, sizeof text, "{\"pid\":%d,\"started_at\":\"%s.%06ldZ\",\"port\":8000}",
                       getpid(), when, now.tv_nsec / 1000);
    if (fstat(fd, &st) != 0 || pwrite(fd, text, len, 0) != len || flock(d, LOCK_SH | LOCK_NB) != 0)
        return 4;

    if (!same(fd, path) || pread(fd, text, sizeof text, 0) != len ||
        pread(fd, text, sizeof text, len) != 0)
        return 5;
    if (unlinkat(d, name, 0) != 0)
        return 6;
    close(fd);
    close(d);
    return 0;
}

/* The holder's id where the lock is held, else 0: open, flock, read, one look at /proc. */
int baseline_refused(const char *path)
{
    char text[1024], stat_path[64];
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    ssize_t len = read(fd, text, sizeof text - 1);
    close(fd);
    if (len <= 0)
        return 0;
    text[len] = 0;
    int pid = atoi(text + strlen("{\"pid\":"));
    snprintf(stat_path, sizeof stat_path, "/proc/%d/stat", pid);
    fd = open(stat_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    len = read(fd, text, sizeof text - 1);
    close(fd);
    if (len <= 0)
        return 0;
    text[len] = 0;
    char *state = strrchr(text, ')');
    return state && state[2] != 'Z' ? pid : 0;
}
