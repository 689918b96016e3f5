//! The job object that a launcher puts its server into, and by which `stop` sees all of it end:
//! apart from processes, as it outlives each of them.

use std::io;
use std::mem;
use std::os::windows::io::{
    AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle, RawHandle,
};
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{ERROR_ALREADY_EXISTS, ERROR_MORE_DATA, GetLastError};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_BASIC_PROCESS_ID_LIST, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectBasicProcessIdList, JobObjectExtendedLimitInformation, OpenJobObjectW,
    QueryInformationJobObject, SetInformationJobObject, TerminateJobObject,
};
use windows_sys::Win32::System::SystemServices::{JOB_OBJECT_QUERY, JOB_OBJECT_TERMINATE};
use windows_sys::Win32::System::Threading::PROCESS_QUERY_LIMITED_INFORMATION;

use super::handle::{creation_time, open_live, open_process};
use super::result::{is, succeeded};

/// What members of a job that is terminated end with, as `taskkill /F` ends a process.
const KILLED: u32 = 1;
/// A job tells nobody reliably when it is empty, so it is asked this often.
const STEP: Duration = Duration::from_millis(5);
/// As many members are told; with more, the rest shows when these have ended.
const MAX_TOLD: usize = 1024;

/// A server that this process runs, with all that it starts. Windows only: elsewhere that is a
/// process group, or the tree of its children.
///
/// [`stop_server`](crate::stop_server) finds it by the process that made it, and says that a server
/// has stopped when nothing in its job lives any more. It ends with its last handle.
///
/// ```no_run
/// use std::os::windows::io::AsHandle;
/// use std::process::Command;
///
/// use llmlb_lock_core::ServerJob;
///
/// let job = ServerJob::create()?;
/// let mut server = Command::new("server.exe").spawn()?;
/// job.add(server.as_handle())?;
/// server.wait()?;
/// job.terminate()?; // what it left behind
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ServerJob {
    handle: OwnedHandle,
}

impl ServerJob {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn create() -> io::Result<Self> {
        let own = open_process(std::process::id(), PROCESS_QUERY_LIMITED_INFORMATION)?;
        let name = job_name(std::process::id(), creation_time(&own)?);
        let job = match Self::create_as(name.as_ptr())? {
            (job, false) => job,
            // This process has one already, or a stranger made it: one that only we know, then.
            (_, true) => Self::create_as(ptr::null())?.0,
        };
        let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        // SAFETY: the handle is open, and as many bytes as stated are there to be read.
        succeeded(unsafe {
            SetInformationJobObject(
                job.raw(),
                JobObjectExtendedLimitInformation,
                (&raw const limits).cast(),
                mem::size_of_val(&limits) as u32,
            )
        })?;
        Ok(job)
    }

    /// With whether there was one of that name.
    fn create_as(name: *const u16) -> io::Result<(Self, bool)> {
        // SAFETY: the name is null or ends with a zero, and the default access is wanted.
        let handle = unsafe { CreateJobObjectW(ptr::null(), name) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: only reads what the call above has left.
        let existed = unsafe { GetLastError() } == ERROR_ALREADY_EXISTS;
        // SAFETY: a new handle that nobody else has.
        let handle = unsafe { OwnedHandle::from_raw_handle(handle) };
        Ok((Self { handle }, existed))
    }

    /// The one that a process made, while anybody has it open. The caller has that process open,
    /// so that its id is not given away.
    pub(super) fn of(pid: u32, created: u64) -> Option<Self> {
        let name = job_name(pid, created);
        let access = JOB_OBJECT_QUERY | JOB_OBJECT_TERMINATE;
        // SAFETY: the name ends with a zero.
        let handle = unsafe { OpenJobObjectW(access, 0, name.as_ptr()) };
        // Another user's is none of ours, as the process is not.
        (!handle.is_null()).then(|| Self {
            // SAFETY: a new handle that nobody else has.
            handle: unsafe { OwnedHandle::from_raw_handle(handle) },
        })
    }

    fn raw(&self) -> RawHandle {
        self.handle.as_raw_handle()
    }

    /// Adds a process. All that it starts from then on belongs to the job as well: add it while it
    /// is suspended.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn add(&self, process: BorrowedHandle<'_>) -> io::Result<()> {
        // SAFETY: both handles are open.
        succeeded(unsafe { AssignProcessToJobObject(self.raw(), process.as_raw_handle()) })
    }

    /// Ends all that is in it, without waiting for their end.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn terminate(&self) -> io::Result<()> {
        // SAFETY: the handle is open, and has the right to terminate.
        succeeded(unsafe { TerminateJobObject(self.raw(), KILLED) })
    }

    /// Who in it is alive, as ids.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        const HEADER: usize = mem::offset_of!(JOBOBJECT_BASIC_PROCESS_ID_LIST, ProcessIdList);
        const WORD: usize = mem::size_of::<usize>();
        // Of words, so that it is aligned for the structure.
        let mut buffer = vec![0usize; HEADER / WORD + MAX_TOLD];
        // SAFETY: the handle is open, and as many bytes as stated are ours to be written.
        let result = succeeded(unsafe {
            QueryInformationJobObject(
                self.raw(),
                JobObjectBasicProcessIdList,
                buffer.as_mut_ptr().cast(),
                mem::size_of_val(&*buffer) as u32,
                ptr::null_mut(),
            )
        });
        match result {
            Err(e) if !is(&e, ERROR_MORE_DATA) => return Err(e),
            _ => {}
        }
        // SAFETY: the buffer is larger than the structure, and aligned for it.
        let list = unsafe { &*buffer.as_ptr().cast::<JOBOBJECT_BASIC_PROCESS_ID_LIST>() };
        let told = (list.NumberOfProcessIdsInList as usize).min(MAX_TOLD);
        let ids = buffer[HEADER / WORD..].iter().take(told);
        // Members that have ended count until nobody has them open.
        Ok(ids
            .filter_map(|&id| u32::try_from(id).ok())
            .filter(|&id| !matches!(open_live(id, 0), Ok(None)))
            .collect())
    }

    /// Waits until nothing in it lives. False when it is later than `deadline` first; `None` is no
    /// end.
    pub(super) fn wait_until(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            if self.processes()?.is_empty() {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            std::thread::sleep(STEP);
        }
    }
}

impl AsHandle for ServerJob {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.handle.as_handle()
    }
}

/// The one name by which a process's job is found, in all sessions of the machine.
fn job_name(pid: u32, created: u64) -> Vec<u16> {
    let name = format!("Global\\llmlb-job-{pid}-{created:x}\0");
    name.encode_utf16().collect()
}
