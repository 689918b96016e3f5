/*
 * libllmlb_lock: one server per port, guarded by a kernel-locked lock file that disappears with
 * its holder, names it, and lets it be stopped.
 *
 * Generated from the Rust source by `make header`: do not edit.
 *
 *     llmlb_lock_t *lock;
 *     llmlb_lock_info_t holder;
 *     switch (llmlb_lock_acquire(8000, &lock, &holder)) {
 *     case LLMLB_OK:              serve(); break;
 *     case LLMLB_ALREADY_RUNNING: printf("PID %u serves port 8000\n", holder.pid); return 1;
 *     default:                    return fail(); // llmlb_last_error_message says why
 *     }
 *     llmlb_lock_free(lock);
 *
 * For every function:
 *
 * - It returns llmlb_result_t, or cannot fail. What it returns through pointers is written on
 *   success alone, but for the holder of a lock that was refused, and for the size or number that
 *   a buffer would have needed (LLMLB_BUFFER_TOO_SMALL).
 * - No pointer may be NULL unless its description says so; one that is gives LLMLB_NULL_ARGUMENT.
 *   Other pointers must be valid and aligned for what they point to.
 * - Strings are NUL-terminated UTF-8, paths on every system. They go into buffers of the caller's,
 *   and the sizes given for them include the NUL. Only handles are freed, by their own functions.
 * - It may be called by any thread, handles may be used by any thread and by several at once,
 *   except for freeing them. None is async-signal-safe, but llmlb_child_hook_run. The environment
 *   is read (LLMLB_LOCK_DIR, TMPDIR), so it must not be changed at the same time.
 * - The last error's message and number belong to the thread that called: in a language that moves
 *   between threads, pin it to one from the call to the question.
 * - The library starts no threads and handles no signals. It logs through llmlb_set_log_callback.
 */

#ifndef LLMLB_LOCK_H
#define LLMLB_LOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The environment variable that names the default lock directory. */
#define LLMLB_LOCK_DIR_ENV "LLMLB_LOCK_DIR"

/*
 * A launcher that makes its server the leader of a process group of its own sets this variable to
 * the port in the server's environment: what the server leaves behind in that group is then ended
 * with it.
 */
#define LLMLB_GUARDED_PORT_ENV "LLMLB_GUARDED_PORT"

/*
 * A launcher sets this variable to what llmlb_lock_server_id says: what the server leaves behind is
 * known by it, whatever becomes of server and launcher. A process that unsets it and leaves the
 * session is let go.
 */
#define LLMLB_SERVER_ID_ENV "LLMLB_SERVER_ID"

/* The version of this header's interface. It changes when programs must be compiled anew. */
#define LLMLB_ABI_VERSION 1

/* The size of `owner` in `llmlb_server_t`, in bytes with the terminating NUL. */
#define LLMLB_OWNER_SIZE 64

/*
 * What a function has to say. Numbers are never changed or used again; new ones may come, so
 * treat those you do not know as failures.
 */
typedef enum {
    /* It worked. */
    LLMLB_OK = 0,
    /* A pointer was NULL that may not be. */
    LLMLB_NULL_ARGUMENT = 1,
    /* An argument has a value that makes no sense, or the handle was released before. */
    LLMLB_INVALID_ARGUMENT = 2,
    /* A path is not valid UTF-8. */
    LLMLB_INVALID_UTF8 = 3,
    /* The caller's buffer is too small; the needed size was written. */
    LLMLB_BUFFER_TOO_SMALL = 4,
    /* A bug in the library. It was contained, but do not use the handles involved again. */
    LLMLB_PANIC = 5,
    /* The program was compiled with the header of an incompatible version. */
    LLMLB_ABI_MISMATCH = 6,
    /* A failure that has no number in this version. */
    LLMLB_OTHER = 7,
    /* Another server holds the port; the holder's details were written. */
    LLMLB_ALREADY_RUNNING = 16,
    /* The lock could not be taken. */
    LLMLB_ACQUIRE_FAILED = 17,
    /*
     * The lock file could not be removed, or another process has the lock still, as a forked
     * child, and keeps the port guarded. This one holds it no more.
     */
    LLMLB_RELEASE_FAILED = 18,
    /*
     * The lock file is not what this library writes. Only reading says so: acquiring recovers a
     * corrupt file that nobody holds.
     */
    LLMLB_CORRUPTED = 19,
    /* The lock directory could not be created or opened. */
    LLMLB_DIRECTORY_CREATION_FAILED = 20,
    /* The lock is held, but its file does not name a live process. */
    LLMLB_HELD_BY_UNKNOWN = 21,
    /* Port 0 names no port. */
    LLMLB_INVALID_PORT = 22,
    /*
     * The lock file was removed or replaced while the lock was held: another server can start.
     */
    LLMLB_LOST = 23,
    /* There is no such running process. */
    LLMLB_NO_SUCH_PROCESS = 24,
    /* Only the process that acquired or adopted a lock may hand it over. */
    LLMLB_NOT_OWNER = 25,
    /* The lock could not be made inheritable, or its file not rewritten for a new holder. */
    LLMLB_HAND_OVER_FAILED = 26,
    /* A lock file or the lock directory could not be read. */
    LLMLB_READ_FAILED = 27,
    /* The process that the file names cannot be shown to hold the lock: it was not signalled. */
    LLMLB_NOT_HOLDER = 28,
    /* The process could not be signalled or waited for. */
    LLMLB_STOP_FAILED = 29,
    /* The caller's `interrupted` callback ended a wait. */
    LLMLB_INTERRUPTED = 30,
    /* Stop requests cannot be listened for. Windows only. */
    LLMLB_STOP_EVENT_FAILED = 31
} llmlb_result_t;

/* Whether the server behind a lock file lives. */
typedef enum {
    /* Something that has no number in this version. */
    LLMLB_SERVER_OTHER = 0,
    /* The process that the file names is alive. */
    LLMLB_SERVER_RUNNING = 1,
    /* The lock is held, but not by a process that the file names. */
    LLMLB_SERVER_HELD = 2,
    /* Left behind: nobody holds the lock. The next acquire recovers it. */
    LLMLB_SERVER_STALE = 3,
    /* The file may not be read, or is no regular file. */
    LLMLB_SERVER_UNREADABLE = 4
} llmlb_server_state_t;

/* How `llmlb_stop_server` ended. */
typedef enum {
    /* In a way that has no number in this version. */
    LLMLB_STOP_OTHER = 0,
    /* The server has ended, and its lock file is gone. */
    LLMLB_STOP_STOPPED = 1,
    /* There was no server, nor a lock file. */
    LLMLB_STOP_NOT_RUNNING = 2,
    /* There was no server; the lock file it left behind was removed. */
    LLMLB_STOP_STALE_CLEANED = 3,
    /* The server was asked to end, but still runs. */
    LLMLB_STOP_TIMED_OUT = 4,
    /* There was no server any more; processes that it had left behind were ended. */
    LLMLB_STOP_LEFT_OVERS_ENDED = 5
} llmlb_stop_status_t;

/* How serious a log message is. */
typedef enum {
    /* Something failed that no function reports. */
    LLMLB_LOG_ERROR = 1,
    /* Something was put right, such as a stale lock file. */
    LLMLB_LOG_WARN = 2,
    /* For users. */
    LLMLB_LOG_INFO = 3,
    /* For developers: locks acquired, released, servers asked to stop. */
    LLMLB_LOG_DEBUG = 4,
    /* Everything. */
    LLMLB_LOG_TRACE = 5
} llmlb_log_level_t;

#if !defined(_WIN32)
/*
 * What a forked child does before exec to take the lock over by itself, made by
 * `llmlb_lock_child_hook`. Not on Windows.
 *
 * Unlike with `llmlb_lock_set_inheritable`, no other child inherits the lock, and the lock file
 * never names a launcher that was killed while its server starts.
 */
typedef struct llmlb_child_hook_t llmlb_child_hook_t;
#endif

/*
 * A port that is guarded by this process, from an acquire until `llmlb_lock_release` or
 * `llmlb_lock_free`, or until the process ends, however it ends.
 *
 * A forked child has a copy, which keeps the lock as long as it is open. Releasing or freeing the
 * copy closes it and does nothing else: only the process that acquired or adopted the lock gives
 * it back. Do not fork while another thread is inside a function with the same handle, if the
 * child is to use it.
 */
typedef struct llmlb_lock_t llmlb_lock_t;

#if defined(_WIN32)
/*
 * Requests to end that `llmlb_stop_server` makes of this process, from
 * `llmlb_stop_event_listen` until `llmlb_stop_event_free`. Windows only: elsewhere they are
 * SIGTERM.
 *
 * A server that listens is asked to end, and has the time that the caller gives it; one that does
 * not is terminated at once.
 */
typedef struct llmlb_stop_event_t llmlb_stop_event_t;
#endif

/*
 * Asked while a function waits, with the caller's `user_data`: true ends the wait with
 * `LLMLB_INTERRUPTED`. It runs on the thread that waits, at least every 50 ms, and must not throw
 * or longjmp.
 */
typedef bool (*llmlb_interrupted_t)(void *user_data);

/* How `llmlb_lock_acquire_with` acquires. All zero is a good start, and the default. */
typedef struct {
    /* The lock directory; NULL for the default one. */
    const char *directory;
    /*
     * How long to wait for another holder to leave, in milliseconds: 0 not to wait, UINT64_MAX
     * without end.
     */
    uint64_t timeout_ms;
    /* Ends the wait; NULL if nothing does. */
    llmlb_interrupted_t interrupted;
    /* Passed on to `interrupted`. */
    void *user_data;
} llmlb_acquire_options_t;

/* How `llmlb_stop_server` stops. Start from `llmlb_stop_options_default`. */
typedef struct {
    /* The lock directory; NULL for the default one. */
    const char *directory;
    /*
     * How long the server may take to end after it was asked to, in milliseconds; UINT64_MAX
     * without end. 5000 by default.
     */
    uint64_t timeout_ms;
    /* Whether it is killed when the time has run out. Not by default. */
    bool force;
    /*
     * Ends the wait; NULL if nothing does. A server that was asked to end does so all the same.
     */
    llmlb_interrupted_t interrupted;
    /* Passed on to `interrupted`. */
    void *user_data;
} llmlb_stop_options_t;

/* Who guards a port. */
typedef struct {
    /* When the process took the lock or was handed it: seconds since 1970-01-01T00:00:00Z ... */
    int64_t started_at_sec;
    /* ... and nanoseconds, 0 to 999999999. */
    uint32_t started_at_nsec;
    /* The process id. */
    uint32_t pid;
    /* The guarded port. */
    uint16_t port;
} llmlb_lock_info_t;

/* One lock file in a lock directory. */
typedef struct {
    /* The port it guards. */
    uint16_t port;
    /* What became of its holder. */
    llmlb_server_state_t state;
    /* Whether `info` says what the file says; else it is all zero. */
    bool has_info;
    /* What the file says. */
    llmlb_lock_info_t info;
    /*
     * Who owns a file that is unreadable, where that is known: a user's name or number, cut to
     * fit; else "".
     */
    char owner[LLMLB_OWNER_SIZE];
} llmlb_server_t;

/* What `llmlb_stop_server` found and did. */
typedef struct {
    /* How it ended. */
    llmlb_stop_status_t status;
    /*
     * Whether the server had to be killed: its time had run out, or, on Windows, it listens not.
     */
    bool forced;
    /* Whether `info` says who the server was; else it is all zero. */
    bool has_info;
    /* Who the server was. */
    llmlb_lock_info_t info;
} llmlb_stop_outcome_t;

/*
 * Gets a log message: UTF-8 text without a newline at its end, valid during the call, and the
 * `user_data` of `llmlb_set_log_callback`. It runs on the thread that logs, so on any; it must
 * not throw or longjmp. What library functions log that it calls is dropped.
 */
typedef void (*llmlb_log_callback_t)(llmlb_log_level_t level, const char *message, void *user_data);

#ifdef __cplusplus
extern "C" {
#endif /* __cplusplus */

/*
 * The library's version, such as "0.1.0". Never NULL, valid for ever. May be called by any thread.
 */
const char *llmlb_version(void);

/* The interface's version that the library was built with. May be called by any thread. */
uint32_t llmlb_abi_version(void);

/*
 * `LLMLB_ABI_MISMATCH` unless the library fits the header the program was compiled with: call it
 * once at the start, with `LLMLB_ABI_VERSION`. May be called by any thread.
 */
llmlb_result_t llmlb_abi_check(uint32_t version);

/*
 * A short text for a result, in English, such as "Lock file is corrupted". Never NULL, also for
 * numbers this version does not know; valid for ever. May be called by any thread.
 */
const char *llmlb_result_string(uint32_t result);

/*
 * Copies the message of the calling thread's last failure: several lines of text that name the
 * port or the path and say what to do, or "" if nothing has failed yet. Success does not clear
 * it.
 *
 * `*needed` gets its size with the terminating NUL, on `LLMLB_BUFFER_TOO_SMALL` too; `buffer` may
 * be NULL if `capacity` is 0. May be called by any thread, and answers for that thread.
 */
llmlb_result_t llmlb_last_error_message(char *buffer, size_t capacity, size_t *needed);

/*
 * The operating system's error number (`errno`, on Windows `GetLastError`) behind the calling
 * thread's last failure; 0 if there was none. May be called by any thread.
 */
int32_t llmlb_last_os_error(void);

/* The default: the default directory, without waiting. May be called by any thread. */
llmlb_acquire_options_t llmlb_acquire_options_default(void);

/* The default: the default directory, 5 seconds, no force. May be called by any thread. */
llmlb_stop_options_t llmlb_stop_options_default(void);

/*
 * Guards `port` in the default directory. Does not wait for another holder to leave.
 *
 * A file that nobody holds is recovered. A lock that is held without naming a live process, as it
 * is for an instant when servers start or stop, is looked at again for about one second.
 *
 * On success `*lock` is a new handle, to be freed with `llmlb_lock_free`. On
 * `LLMLB_ALREADY_RUNNING`, and only then, `*holder` says by whom the port is guarded.
 *
 * Else `LLMLB_HELD_BY_UNKNOWN`, `LLMLB_INVALID_PORT`, `LLMLB_DIRECTORY_CREATION_FAILED` or
 * `LLMLB_ACQUIRE_FAILED`. May be called by many threads at once: one of them gets the lock.
 */
llmlb_result_t llmlb_lock_acquire(uint16_t port, llmlb_lock_t **lock, llmlb_lock_info_t *holder);

/*
 * `llmlb_lock_acquire`, waiting up to `timeout_ms` milliseconds for another holder to leave;
 * UINT64_MAX waits without end. May be called by many threads at once.
 */
llmlb_result_t llmlb_lock_acquire_timeout(uint16_t port,
                                          uint64_t timeout_ms,
                                          llmlb_lock_t **lock,
                                          llmlb_lock_info_t *holder);

/*
 * `llmlb_lock_acquire` in a directory of the caller's choice, with a wait that a callback can end.
 *
 * A directory that does not exist is created with its parents; one that does is used with the
 * mode it has. Also `LLMLB_INVALID_UTF8`, `LLMLB_INVALID_ARGUMENT` for an empty directory, and
 * `LLMLB_INTERRUPTED`. May be called by many threads at once.
 */
llmlb_result_t llmlb_lock_acquire_with(uint16_t port,
                                       const llmlb_acquire_options_t *options,
                                       llmlb_lock_t **lock,
                                       llmlb_lock_info_t *holder);

/*
 * Whom the lock file names: this process, or the one the lock was handed over to.
 *
 * May be called by any thread.
 */
llmlb_result_t llmlb_lock_info(const llmlb_lock_t *lock, llmlb_lock_info_t *info);

/*
 * Copies the path of the lock file. For `buffer`, `capacity` and `needed` see
 * `llmlb_last_error_message`.
 *
 * May be called by any thread.
 */
llmlb_result_t llmlb_lock_file(const llmlb_lock_t *lock,
                               char *buffer,
                               size_t capacity,
                               size_t *needed);

#if !defined(_WIN32)
/*
 * The descriptor that carries the kernel lock, to be passed on to a server. It stays the
 * library's: do not close it. A copy (`dup`, a descriptor that is sent or inherited) guards the
 * port as well until it is closed. Not on Windows.
 *
 * May be called by any thread.
 */
llmlb_result_t llmlb_lock_fd(const llmlb_lock_t *lock, int *fd);
#endif

/*
 * Lets processes started from now on inherit the lock, or no longer: such a process keeps the
 * port guarded as long as it lives and does not close the descriptors.
 *
 * The children of every thread inherit them: make it short where others may start processes.
 * `LLMLB_HAND_OVER_FAILED` if the system refuses. On Windows they have to be started with handles
 * inherited. May be called by any thread.
 */
llmlb_result_t llmlb_lock_set_inheritable(const llmlb_lock_t *lock, bool inheritable);

/*
 * Makes the lock file name the process `pid`, which inherited the lock, so that it is the one
 * shown and stopped.
 *
 * From then on the port is guarded as long as any process has the descriptor, this one included:
 * free the handle, and it is guarded exactly as long as the other process lives. Releasing and
 * freeing no longer remove the file; a supervisor that stays calls `llmlb_lock_adopt` when its
 * server has ended.
 *
 * `LLMLB_NO_SUCH_PROCESS`, `LLMLB_NOT_OWNER` in a forked child, `LLMLB_LOST` as for
 * `llmlb_lock_verify`, `LLMLB_HAND_OVER_FAILED` if the file can't be written. May be called by
 * any thread.
 */
llmlb_result_t llmlb_lock_hand_over(llmlb_lock_t *lock, uint32_t pid);

/*
 * Makes the lock file name this process: after a daemonizing fork, or to take the lock back after
 * `llmlb_lock_hand_over`.
 *
 * The process that forked must not release or free the lock meanwhile: it leaves by `_exit`.
 * `LLMLB_LOST`, `LLMLB_HAND_OVER_FAILED`. May be called by any thread.
 */
llmlb_result_t llmlb_lock_adopt(llmlb_lock_t *lock);

/*
 * Tells whether the path of the lock file still is our file. Who removes it lets another server
 * start: a server that runs for long may ask now and then.
 *
 * `LLMLB_LOST` if it is not, `LLMLB_READ_FAILED` if that can't be told. May be called by any
 * thread.
 */
llmlb_result_t llmlb_lock_verify(const llmlb_lock_t *lock);

/*
 * Gives the lock back and removes its file. The handle remains, to be freed: until then all that
 * is done with it is `LLMLB_INVALID_ARGUMENT`.
 *
 * In a forked child, and after `llmlb_lock_hand_over`, this only closes the descriptor.
 * `LLMLB_RELEASE_FAILED` if another process, as a forked child, has the lock's descriptor for about
 * a second yet: the port stays guarded until that has closed it. Also if the file can't be removed:
 * the port is free all the same, the next acquire recovers the file. May be called by any thread.
 */
llmlb_result_t llmlb_lock_release(llmlb_lock_t *lock);

/*
 * Releases the lock if that was not done, and frees the handle. NULL is fine; a handle that was
 * freed before is undefined behaviour, as is one that another thread is using.
 */
void llmlb_lock_free(llmlb_lock_t *lock);

#if !defined(_WIN32)
/*
 * Copies what a launcher puts into its server's environment as `LLMLB_SERVER_ID_ENV`: the name of
 * one start of the server, another with each call. By it `llmlb_stop_server`,
 * `llmlb_end_left_overs` and the program find what the server has left behind, also when launcher
 * and server were killed. Not on Windows.
 *
 * `LLMLB_HAND_OVER_FAILED` if the lock directory can't be looked at. For `buffer`, `capacity` and
 * `needed` see `llmlb_last_error_message`; 128 bytes are enough. May be called by any thread.
 */
llmlb_result_t llmlb_lock_server_id(const llmlb_lock_t *lock,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *needed);
#endif

#if !defined(_WIN32)
/*
 * Prepares for `llmlb_child_hook_run`. On success `*hook` is a new hook, to be freed with
 * `llmlb_child_hook_free`; it has copies of the lock's descriptors, so the port is guarded until
 * then, too. Not on Windows.
 *
 * `LLMLB_HAND_OVER_FAILED` if the descriptors can't be duplicated. May be called by any thread.
 */
llmlb_result_t llmlb_lock_child_hook(const llmlb_lock_t *lock, llmlb_child_hook_t **hook);
#endif

#if !defined(_WIN32)
/*
 * Called by the child between fork and exec: makes the lock file name it, and the program it
 * becomes inherit the lock. The parent then frees hook and lock, or calls `llmlb_lock_adopt` if
 * the child could not start the program. Not on Windows.
 *
 * Async-signal-safe, so for children of programs with many threads, too: it neither allocates nor
 * locks, and leaves no last error. `LLMLB_HAND_OVER_FAILED` if the file can't be written.
 */
llmlb_result_t llmlb_child_hook_run(const llmlb_child_hook_t *hook);
#endif

#if !defined(_WIN32)
/*
 * Frees the hook, and closes its copies of the descriptors. NULL is fine; one that was freed
 * before, or that another thread is using, is undefined behaviour. Not on Windows.
 */
void llmlb_child_hook_free(llmlb_child_hook_t *hook);
#endif

/*
 * What the lock file for `port` in the default directory says, whether its holder lives or not.
 *
 * `*found` tells whether there is such a file, and `*info` is written if there is.
 * `LLMLB_INVALID_PORT`, `LLMLB_CORRUPTED`, `LLMLB_READ_FAILED`. May be called by any thread.
 */
llmlb_result_t llmlb_read_lock_info(uint16_t port, llmlb_lock_info_t *info, bool *found);

/*
 * `llmlb_read_lock_info` in a directory of the caller's choice. Also `LLMLB_INVALID_UTF8`, and
 * `LLMLB_INVALID_ARGUMENT` for an empty directory. May be called by any thread.
 */
llmlb_result_t llmlb_read_lock_info_in(const char *directory,
                                       uint16_t port,
                                       llmlb_lock_info_t *info,
                                       bool *found);

/*
 * Lists every lock file in the default directory with its state, by port. Changes nothing, and
 * touches no lock of a live server.
 *
 * `*count` gets their number, on `LLMLB_BUFFER_TOO_SMALL` too, when `servers` is left as it is:
 * make room and call again, more than once if servers start meanwhile. `servers` may be NULL if
 * `capacity`, the number of entries there is room for, is 0.
 *
 * `LLMLB_READ_FAILED` if the directory may not be read. May be called by any thread.
 */
llmlb_result_t llmlb_list_servers(llmlb_server_t *servers, size_t capacity, size_t *count);

/*
 * `llmlb_list_servers` in a directory of the caller's choice. Also `LLMLB_INVALID_UTF8`, and
 * `LLMLB_INVALID_ARGUMENT` for an empty directory. May be called by any thread.
 */
llmlb_result_t llmlb_list_servers_in(const char *directory,
                                     llmlb_server_t *servers,
                                     size_t capacity,
                                     size_t *count);

/*
 * Stops the server that guards `port`, and waits until it has ended and its lock file is gone.
 *
 * It is asked with SIGTERM, through a handle that cannot come to mean another process, and only
 * if it can be shown to hold the lock and belongs to the owner of the lock file. Processes it
 * leaves behind that hold the lock are ended with it. On Windows it is asked through an event; a
 * process that does not listen for it (`llmlb_stop_event_listen`) is terminated at once, with or
 * without `force`.
 *
 * `LLMLB_OK` means that `*outcome` tells how it went, not that the server has ended: look for
 * `LLMLB_STOP_TIMED_OUT`. `LLMLB_NOT_HOLDER` if the named process is not provably the holder,
 * `LLMLB_HELD_BY_UNKNOWN` if the holder can't be found, `LLMLB_STOP_FAILED` if it may not be
 * signalled or is the calling process itself; `LLMLB_INTERRUPTED`, `LLMLB_INVALID_PORT`,
 * `LLMLB_READ_FAILED`, `LLMLB_INVALID_UTF8`, `LLMLB_INVALID_ARGUMENT` for an empty directory. May
 * be called by any thread.
 */
llmlb_result_t llmlb_stop_server(uint16_t port,
                                 const llmlb_stop_options_t *options,
                                 llmlb_stop_outcome_t *outcome);

/*
 * Ends what killed servers of `port` have left behind, for launchers that are about to take the
 * lock: SIGTERM, and SIGKILL after `grace_ms` milliseconds. `*ended` gets the number of processes.
 * Nothing is touched that belongs to a server which lives, or whose launcher does.
 *
 * They are known by `LLMLB_SERVER_ID_ENV` in their environment, and on Linux alone: elsewhere there
 * are none to be seen. `llmlb_stop_server` ends them too. `directory` may be NULL for the default
 * one.
 *
 * `LLMLB_READ_FAILED` if processes can't be looked at, `LLMLB_STOP_FAILED` if one may not be
 * signalled or does not end though killed; `LLMLB_INVALID_PORT`, `LLMLB_INVALID_UTF8`,
 * `LLMLB_INVALID_ARGUMENT` for an empty directory. May be called by any thread.
 */
llmlb_result_t llmlb_end_left_overs(const char *directory,
                                    uint16_t port,
                                    uint64_t grace_ms,
                                    size_t *ended);

/*
 * Asks a process to end, with SIGTERM; on Windows it is terminated at once. The caller vouches
 * for `pid`: `llmlb_stop_server` checks it instead, and waits.
 *
 * `LLMLB_INVALID_ARGUMENT`, and nothing is signalled, for 0 and anything above INT32_MAX: `kill`
 * takes those for process groups. `LLMLB_NO_SUCH_PROCESS`, `LLMLB_STOP_FAILED` if it may not be
 * signalled. May be called by any thread.
 */
llmlb_result_t llmlb_stop_process(uint32_t pid);

/*
 * Whether a process with this id is running. A zombie is not, and the id of a thread is none. A
 * PID alone is weak evidence, as the system gives it to another process in time.
 *
 * May be called by any thread.
 */
bool llmlb_is_process_running(uint32_t pid);

/*
 * Copies the path where the lock file for `port` is or would be in the default directory.
 * `LLMLB_INVALID_PORT`, `LLMLB_INVALID_UTF8`. For `buffer`, `capacity` and `needed` see
 * `llmlb_last_error_message`.
 *
 * May be called by any thread.
 */
llmlb_result_t llmlb_lock_path(uint16_t port, char *buffer, size_t capacity, size_t *needed);

/*
 * `llmlb_lock_path` in a directory of the caller's choice. Also `LLMLB_INVALID_ARGUMENT` for an
 * empty directory. May be called by any thread.
 */
llmlb_result_t llmlb_lock_path_in(const char *directory,
                                  uint16_t port,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *needed);

/*
 * Copies the path of the default directory: `$LLMLB_LOCK_DIR` if that is set and not empty, else
 * `llmlb` in the system's temporary directory. `LLMLB_INVALID_UTF8`. For `buffer`, `capacity` and
 * `needed` see `llmlb_last_error_message`.
 *
 * May be called by any thread; like everything that uses the default directory, not while
 * another changes the environment.
 */
llmlb_result_t llmlb_lock_dir(char *buffer, size_t capacity, size_t *needed);

#if defined(_WIN32)
/*
 * Listens for requests to end, whatever ports this process guards: call it before acquiring. On
 * success `*event` is a new handle, to be freed with `llmlb_stop_event_free`. Windows only.
 *
 * `LLMLB_INVALID_ARGUMENT` if this process listens already, `LLMLB_STOP_EVENT_FAILED` if the
 * system refuses. May be called by any thread.
 */
llmlb_result_t llmlb_stop_event_listen(llmlb_stop_event_t **event);
#endif

#if defined(_WIN32)
/*
 * Waits up to `timeout_ms` milliseconds for the next request, UINT64_MAX without end; `*requested`
 * tells whether there was one. Each request ends one wait, and one that comes while nobody waits
 * ends the next. Windows only.
 *
 * `LLMLB_STOP_EVENT_FAILED` if the system refuses. May be called by any thread.
 */
llmlb_result_t llmlb_stop_event_wait(const llmlb_stop_event_t *event,
                                     uint64_t timeout_ms,
                                     bool *requested);
#endif

#if defined(_WIN32)
/*
 * The event's HANDLE, to wait for it beside other things: a wait that it ends takes the request.
 * It stays the library's: do not close it. Windows only.
 *
 * May be called by any thread.
 */
llmlb_result_t llmlb_stop_event_handle(const llmlb_stop_event_t *event, void **handle);
#endif

#if defined(_WIN32)
/*
 * Listens no longer, and frees the handle. NULL is fine; one that was freed before, or that
 * another thread is using, is undefined behaviour. Windows only.
 */
void llmlb_stop_event_free(llmlb_stop_event_t *event);
#endif

/*
 * Sends what the library logs to `callback`; NULL, which is how it starts, logs nothing.
 *
 * It replaces the callback before, which is not running any more when this returns: its
 * `user_data` can then be freed. `LLMLB_INVALID_ARGUMENT` inside the callback itself. May be
 * called by any thread.
 */
llmlb_result_t llmlb_set_log_callback(llmlb_log_callback_t callback, void *user_data);

#ifdef __cplusplus
} /* extern "C" */
#endif /* __cplusplus */

#endif  /* LLMLB_LOCK_H */
