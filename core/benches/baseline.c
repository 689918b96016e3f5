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

/* The least that guards a port and gives it back. 0 on success. */
int baseline_floor(const char *path, const char *text, size_t len)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0 || write(fd, text, len) != (ssize_t)len)
        return 1;
    return unlink(path) != 0 || close(fd) != 0;
}

/* The least that finds a port guarded. 0 if it is. */
int baseline_refused_floor(const char *path)
{
    char text[1024];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0 || read(fd, text, sizeof text) <= 0)
        return 1;
    return close(fd) != 0;
}

/* Acquires and releases, with the library's system calls where nobody else is. 0 on success. */
int baseline_acquire_release(const char *dir, const char *name, const char *path)
{
    char text[512], when[32];
    struct stat st, found;
    struct timespec now;
    struct tm tm;
    int d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
    if (d < 0 || openat(d, name, flags) >= 0)
        return 1;
    int fd = openat(d, name, flags | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || fstat(fd, &st) != 0 || st.st_nlink != 1 || st.st_uid != geteuid())
        return 2;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || lstat(path, &found) != 0 || found.st_ino != st.st_ino)
        return 3;
    clock_gettime(CLOCK_REALTIME, &now);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now.tv_sec, &tm));
    int len = snprintf(text, sizeof text,
                       "{\"pid\":%d,\"started_at\":\"%s.%06ldZ\",\"port\":8000,"
                       "\"boot_id\":\"cc2bc7f7-1d51-418a-b8d9-99c625bb514a\","
                       "\"pid_ns\":4026531836,\"start_ticks\":226787}",
                       getpid(), when, now.tv_nsec / 1000);
    if (pwrite(fd, text, len, 0) != len || flock(d, LOCK_SH | LOCK_NB) != 0)
        return 4;

    int second = openat(d, name, flags);
    if (second < 0 || fstat(second, &found) != 0 || found.st_ino != st.st_ino)
        return 5;
    if (pread(fd, text, sizeof text, 0) != len)
        return 6;
    memset(text, ' ', len);
    if (pwrite(fd, text, len, 0) != len || close(fd) != 0)
        return 7;
    if (flock(second, LOCK_EX | LOCK_NB) != 0 || fstatat(d, name, &found, AT_SYMLINK_NOFOLLOW) != 0)
        return 8;
    if (found.st_ino != st.st_ino || unlinkat(d, name, 0) != 0)
        return 9;
    close(second);
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
