// Package llmlblock keeps to one server per port, with libllmlb_lock.
//
//	lock, err := llmlblock.Acquire(8000)
//	var already *llmlblock.AlreadyRunningError
//	if errors.As(err, &already) {
//		log.Fatalf("port %d is served by PID %d", already.Port, already.Pid)
//	}
//	defer lock.Close()
//
// The port is guarded until [Lock.Close], or until the process ends, however it ends. A lock that
// is no longer reachable keeps its port: it is not closed by the garbage collector.
//
// The library is found with pkg-config.
package llmlblock

/*
#cgo pkg-config: llmlb_lock
#include <llmlb_lock.h>
#include <stdlib.h>

// Go cannot be called back from a wait cheaply, and need not be: it sets a flag.
static bool is_set(void *flag) {
	return __atomic_load_n((int *)flag, __ATOMIC_ACQUIRE) != 0;
}

static void set(int *flag) {
	__atomic_store_n(flag, 1, __ATOMIC_RELEASE);
}

static void stop_on(llmlb_stop_options_t *options, int *flag) {
	options->interrupted = is_set;
	options->user_data = flag;
}

static void acquire_until(llmlb_acquire_options_t *options, int *flag) {
	options->interrupted = is_set;
	options->user_data = flag;
}
*/
import "C"

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// The names of the environment variables the library knows.
const (
	LockDirEnv     = C.LLMLB_LOCK_DIR_ENV
	GuardedPortEnv = C.LLMLB_GUARDED_PORT_ENV
	ServerIDEnv    = C.LLMLB_SERVER_ID_ENV
)

// Info says who guards a port.
type Info struct {
	Pid       int
	Port      uint16
	StartedAt time.Time
}

func info(c *C.llmlb_lock_info_t) Info {
	return Info{
		Pid:       int(c.pid),
		Port:      uint16(c.port),
		StartedAt: time.Unix(int64(c.started_at_sec), int64(c.started_at_nsec)).UTC(),
	}
}

// AlreadyRunningError is returned when another server guards the port, and says which.
type AlreadyRunningError struct {
	Info
	message string
}

func (e *AlreadyRunningError) Error() string { return e.message }

// Code is what went wrong; it is an error itself, for use with [errors.Is].
type Code uint32

// Everything else that can go wrong. See llmlb_lock.h.
const (
	ErrInvalidArgument         Code = C.LLMLB_INVALID_ARGUMENT
	ErrInvalidUTF8             Code = C.LLMLB_INVALID_UTF8
	ErrAcquireFailed           Code = C.LLMLB_ACQUIRE_FAILED
	ErrReleaseFailed           Code = C.LLMLB_RELEASE_FAILED
	ErrCorrupted               Code = C.LLMLB_CORRUPTED
	ErrDirectoryCreationFailed Code = C.LLMLB_DIRECTORY_CREATION_FAILED
	ErrHeldByUnknown           Code = C.LLMLB_HELD_BY_UNKNOWN
	ErrInvalidPort             Code = C.LLMLB_INVALID_PORT
	ErrLost                    Code = C.LLMLB_LOST
	ErrNoSuchProcess           Code = C.LLMLB_NO_SUCH_PROCESS
	ErrNotOwner                Code = C.LLMLB_NOT_OWNER
	ErrHandOverFailed          Code = C.LLMLB_HAND_OVER_FAILED
	ErrReadFailed              Code = C.LLMLB_READ_FAILED
	ErrNotHolder               Code = C.LLMLB_NOT_HOLDER
	ErrStopFailed              Code = C.LLMLB_STOP_FAILED
	ErrInterrupted             Code = C.LLMLB_INTERRUPTED
)

func (c Code) Error() string { return C.GoString(C.llmlb_result_string(C.uint32_t(c))) }

// Error is a failure other than [AlreadyRunningError]. It wraps its [Code] and, where the
// operating system caused it, the [syscall.Errno].
type Error struct {
	Code    Code
	Errno   syscall.Errno
	message string
}

func (e *Error) Error() string { return e.message }

func (e *Error) Unwrap() []error {
	if e.Errno == 0 {
		return []error{e.Code}
	}
	return []error{e.Code, e.Errno}
}

// call runs f on one thread, which is where the library keeps the last error's message.
func call(f func() C.llmlb_result_t) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	result := f()
	if result == C.LLMLB_OK {
		return nil
	}
	return &Error{
		Code:    Code(result),
		Errno:   syscall.Errno(C.llmlb_last_os_error()),
		message: lastMessage(),
	}
}

func lastMessage() string {
	message, ok := text(func(buffer *C.char, size C.size_t, needed *C.size_t) C.llmlb_result_t {
		return C.llmlb_last_error_message(buffer, size, needed)
	})
	if ok != C.LLMLB_OK {
		return "unknown error"
	}
	return message
}

// text asks for a string, with as much room as it turns out to need.
func text(ask func(*C.char, C.size_t, *C.size_t) C.llmlb_result_t) (string, C.llmlb_result_t) {
	buffer := make([]byte, 256)
	for {
		var needed C.size_t
		size := C.size_t(len(buffer))
		switch result := ask((*C.char)(unsafe.Pointer(&buffer[0])), size, &needed); result {
		case C.LLMLB_OK:
			return string(buffer[:needed-1]), result
		case C.LLMLB_BUFFER_TOO_SMALL:
			buffer = make([]byte, needed)
		default:
			return "", result
		}
	}
}

// callText is call for what answers with a string.
func callText(ask func(*C.char, C.size_t, *C.size_t) C.llmlb_result_t) (string, error) {
	var answer string
	err := call(func() (result C.llmlb_result_t) {
		answer, result = text(ask)
		return result
	})
	return answer, err
}

// flag is set when a context is done; the library looks at it while it waits.
func flag(ctx context.Context) (c *C.int, release func()) {
	c = (*C.int)(C.calloc(1, C.size_t(unsafe.Sizeof(C.int(0)))))
	set := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		C.set(c)
		close(set)
	})
	return c, func() {
		if !stop() {
			<-set
		}
		C.free(unsafe.Pointer(c))
	}
}

// Lock guards a port. Its methods may be called by any goroutine, Close once.
type Lock struct{ c *C.llmlb_lock_t }

// Dir is a directory of locks; "" is the default one, $LLMLB_LOCK_DIR or llmlb in the temporary
// directory.
type Dir string

// Acquire guards port in the default directory. It does not wait for another holder to leave: the
// error is then an [AlreadyRunningError].
func Acquire(port uint16) (*Lock, error) { return Dir("").Acquire(port) }

// AcquireContext guards port in the default directory, and waits for another holder to leave
// until ctx is done.
func AcquireContext(ctx context.Context, port uint16) (*Lock, error) {
	return Dir("").AcquireContext(ctx, port)
}

// Acquire is [Acquire] in this directory.
func (d Dir) Acquire(port uint16) (*Lock, error) {
	return d.acquire(port, C.llmlb_acquire_options_default())
}

// AcquireContext is [AcquireContext] in this directory.
func (d Dir) AcquireContext(ctx context.Context, port uint16) (*Lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	interrupted, release := flag(ctx)
	defer release()
	options := C.llmlb_acquire_options_default()
	options.timeout_ms = C.UINT64_MAX
	C.acquire_until(&options, interrupted)
	lock, err := d.acquire(port, options)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return lock, err
}

func (d Dir) acquire(port uint16, options C.llmlb_acquire_options_t) (*Lock, error) {
	options.directory = d.c()
	defer C.free(unsafe.Pointer(options.directory))
	var lock *C.llmlb_lock_t
	var holder C.llmlb_lock_info_t
	err := call(func() C.llmlb_result_t {
		return C.llmlb_lock_acquire_with(C.uint16_t(port), &options, &lock, &holder)
	})
	if failure, ok := err.(*Error); ok && failure.Code == C.LLMLB_ALREADY_RUNNING {
		return nil, &AlreadyRunningError{info(&holder), failure.message}
	}
	if err != nil {
		return nil, err
	}
	return &Lock{lock}, nil
}

// c is NULL for the default directory; to be freed.
func (d Dir) c() *C.char {
	if d == "" {
		return nil
	}
	return C.CString(string(d))
}

// Info says whom the lock file names: this process, or the one it was handed over to.
func (l *Lock) Info() (Info, error) {
	var c C.llmlb_lock_info_t
	err := call(func() C.llmlb_result_t { return C.llmlb_lock_info(l.c, &c) })
	return info(&c), err
}

// ServerID is what a launcher puts into its server's environment as [ServerIDEnv], another with
// each call: what the server leaves behind is known by it, whatever becomes of server and launcher.
func (l *Lock) ServerID() (string, error) {
	return callText(func(b *C.char, size C.size_t, needed *C.size_t) C.llmlb_result_t {
		return C.llmlb_lock_server_id(l.c, b, size, needed)
	})
}

// Path is where the lock file is.
func (l *Lock) Path() (string, error) {
	return callText(func(b *C.char, size C.size_t, needed *C.size_t) C.llmlb_result_t {
		return C.llmlb_lock_file(l.c, b, size, needed)
	})
}

// Verify fails with [ErrLost] if the lock file was removed or replaced: another server can start.
func (l *Lock) Verify() error {
	return call(func() C.llmlb_result_t { return C.llmlb_lock_verify(l.c) })
}

// File is a copy of the descriptor that carries the lock, for a server's [os/exec.Cmd.ExtraFiles].
// The port is guarded as long as a copy is open. The caller closes this one.
func (l *Lock) File() (*os.File, error) {
	var fd C.int
	if err := call(func() C.llmlb_result_t { return C.llmlb_lock_fd(l.c, &fd) }); err != nil {
		return nil, err
	}
	path, err := l.Path()
	if err != nil {
		return nil, err
	}
	// Held, so that no process started meanwhile inherits the copy before it is marked.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	dup, err := syscall.Dup(int(fd))
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	syscall.CloseOnExec(dup)
	return os.NewFile(uintptr(dup), path), nil
}

// HandOver makes the lock file name the process pid, to which [Lock.File] was passed on: it is now
// the one shown and stopped. After Close, the port is guarded exactly as long as that process
// lives.
func (l *Lock) HandOver(pid int) error {
	return call(func() C.llmlb_result_t { return C.llmlb_lock_hand_over(l.c, C.uint32_t(pid)) })
}

// Adopt takes the lock back after [Lock.HandOver].
func (l *Lock) Adopt() error {
	return call(func() C.llmlb_result_t { return C.llmlb_lock_adopt(l.c) })
}

// Close gives the lock back and removes its file; after [Lock.HandOver] it only closes this
// process's descriptor.
func (l *Lock) Close() error {
	if l == nil || l.c == nil {
		return os.ErrClosed
	}
	err := call(func() C.llmlb_result_t { return C.llmlb_lock_release(l.c) })
	C.llmlb_lock_free(l.c)
	l.c = nil
	return err
}

// Outcome is how a stop ended.
type Outcome struct {
	Status Status
	// Forced says that the server had to be killed.
	Forced bool
	// Info says who the server was; nil where nobody knows.
	Info *Info
}

// Status is how a stop ended.
type Status uint32

// How a stop ends. See llmlb_lock.h.
const (
	Stopped        Status = C.LLMLB_STOP_STOPPED
	NotRunning     Status = C.LLMLB_STOP_NOT_RUNNING
	StaleCleaned   Status = C.LLMLB_STOP_STALE_CLEANED
	TimedOut       Status = C.LLMLB_STOP_TIMED_OUT
	LeftOversEnded Status = C.LLMLB_STOP_LEFT_OVERS_ENDED
)

// Stop stops the server that guards port in the default directory, and waits until it has ended.
// The server gets 5 seconds, or until ctx is done; then Stop fails, and a server that was asked to
// end does so all the same.
func Stop(ctx context.Context, port uint16) (Outcome, error) { return Dir("").Stop(ctx, port) }

// Stop is [Stop] in this directory.
func (d Dir) Stop(ctx context.Context, port uint16) (Outcome, error) {
	return d.stop(ctx, port, C.llmlb_stop_options_default())
}

// Kill is [Stop], but kills a server that has not ended after timeout.
func (d Dir) Kill(ctx context.Context, port uint16, timeout time.Duration) (Outcome, error) {
	options := C.llmlb_stop_options_default()
	options.timeout_ms = C.uint64_t(max(timeout, 0).Milliseconds())
	options.force = true
	return d.stop(ctx, port, options)
}

func (d Dir) stop(ctx context.Context, port uint16, options C.llmlb_stop_options_t) (Outcome, error) {
	if err := ctx.Err(); err != nil {
		return Outcome{}, err
	}
	interrupted, release := flag(ctx)
	defer release()
	C.stop_on(&options, interrupted)
	options.directory = d.c()
	defer C.free(unsafe.Pointer(options.directory))
	var c C.llmlb_stop_outcome_t
	err := call(func() C.llmlb_result_t {
		return C.llmlb_stop_server(C.uint16_t(port), &options, &c)
	})
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", err, ctx.Err())
		}
		return Outcome{}, err
	}
	outcome := Outcome{Status: Status(c.status), Forced: bool(c.forced)}
	if c.has_info {
		stopped := info(&c.info)
		outcome.Info = &stopped
	}
	return outcome, nil
}

// EndLeftOvers ends what killed servers of port have left behind, for launchers that are about to
// take the lock, and returns how many processes that were: SIGTERM, and SIGKILL after grace. Nothing
// is touched that belongs to a server which lives. They are known by [ServerIDEnv], on Linux alone.
func (d Dir) EndLeftOvers(port uint16, grace time.Duration) (int, error) {
	directory := d.c()
	defer C.free(unsafe.Pointer(directory))
	var ended C.size_t
	err := call(func() C.llmlb_result_t {
		milliseconds := C.uint64_t(max(grace, 0).Milliseconds())
		return C.llmlb_end_left_overs(directory, C.uint16_t(port), milliseconds, &ended)
	})
	return int(ended), err
}

// Read returns what the lock file for port says, whether its holder lives or not; nil where there
// is none.
func (d Dir) Read(port uint16) (*Info, error) {
	directory, err := d.path()
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(directory))
	var c C.llmlb_lock_info_t
	var found C.bool
	err = call(func() C.llmlb_result_t {
		return C.llmlb_read_lock_info_in(directory, C.uint16_t(port), &c, &found)
	})
	if err != nil || !bool(found) {
		return nil, err
	}
	read := info(&c)
	return &read, nil
}

// Server is one lock file in a directory.
type Server struct {
	Port  uint16
	State State
	// Info is what the file says; nil where it cannot be read.
	Info *Info
	// Owner is who owns a file that is unreadable, where that is known.
	Owner string
}

// State says whether the server behind a lock file lives.
type State uint32

// What becomes of servers. See llmlb_lock.h.
const (
	Running    State = C.LLMLB_SERVER_RUNNING
	Held       State = C.LLMLB_SERVER_HELD
	Stale      State = C.LLMLB_SERVER_STALE
	Unreadable State = C.LLMLB_SERVER_UNREADABLE
)

// Servers lists every lock file in the directory, by port.
func (d Dir) Servers() ([]Server, error) {
	directory, err := d.path()
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(directory))
	buffer := make([]C.llmlb_server_t, 16)
	for {
		var count C.size_t
		err := call(func() C.llmlb_result_t {
			return C.llmlb_list_servers_in(directory, &buffer[0], C.size_t(len(buffer)), &count)
		})
		if failure, ok := err.(*Error); ok && failure.Code == C.LLMLB_BUFFER_TOO_SMALL {
			buffer = make([]C.llmlb_server_t, 2*int(count))
			continue
		}
		if err != nil {
			return nil, err
		}
		servers := make([]Server, count)
		for i := range servers {
			c := &buffer[i]
			servers[i] = Server{
				Port:  uint16(c.port),
				State: State(c.state),
				Owner: C.GoString(&c.owner[0]),
			}
			if c.has_info {
				said := info(&c.info)
				servers[i].Info = &said
			}
		}
		return servers, nil
	}
}

// path is the directory, the default one too; to be freed.
func (d Dir) path() (*C.char, error) {
	if d != "" {
		return C.CString(string(d)), nil
	}
	path, err := callText(func(b *C.char, size C.size_t, needed *C.size_t) C.llmlb_result_t {
		return C.llmlb_lock_dir(b, size, needed)
	})
	if err != nil {
		return nil, err
	}
	return C.CString(path), nil
}
