//! Starting a tree: the socket is bound here and handed to the shim open, so that the lease can be taken at once and
//! nobody has to look for a socket to appear.

use super::contain::Rung;
use super::inherited::LISTENER_FD;
use super::record::{Files, RECORD_VERSION, Record, Spec};
use super::shim::{CHILD_LISTENER_FD, OWN_LISTENER_FD};
use super::sweep::sweep;
use super::tree::Tree;
use super::{ProcessError, platform};
use command_fds::{CommandFdExt, FdMapping};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

const _: () = assert!(OWN_LISTENER_FD == LISTENER_FD, "a shim is started as it starts its child");

/// Starts `spec` under a shim of this very program, its record and socket in `directory`. `inherit` becomes
/// descriptor [`LISTENER_FD`] of the child.
pub async fn launch(
    directory: &Path,
    spec: Spec,
    inherit: Option<UnixListener>,
) -> Result<Tree, ProcessError> {
    let program =
        platform::own_program().map_err(|source| ProcessError::Shim { id: spec.id.clone(), source })?;
    launch_by(&program, directory, spec, inherit).await
}

/// [`launch`], with the shim in another program than this one, as tests have it.
pub async fn launch_by(
    program: &Path,
    directory: &Path,
    spec: Spec,
    inherit: Option<UnixListener>,
) -> Result<Tree, ProcessError> {
    let Some(child) = spec.argv.first().cloned() else {
        return Err(ProcessError::NoProgram { id: spec.id });
    };
    if let Some(name) = spec.rung_max.as_ref().filter(|name| Rung::named(name).is_none()) {
        return Err(ProcessError::Rung { id: spec.id, name: name.clone() });
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| ProcessError::Directory { path: directory.to_owned(), source })?;
    let files = Files::of(directory, &spec.id);
    clear_the_place(&files, &spec.id).await?;

    let bind = UnixListener::bind(&files.socket);
    let listener = bind.map_err(|source| ProcessError::Socket { path: files.socket.clone(), source })?;
    let id = spec.id.clone();
    let record = Record {
        version: RECORD_VERSION,
        spec,
        inherits: inherit.is_some(),
        shim: None,
        child: None,
        init: None,
        cgroup: None,
        containment: String::new(),
    };
    let lease = async {
        files.write(&record)?;
        let shim = start_shim(program, &files.record, listener, inherit)
            .map_err(|source| ProcessError::Shim { id: id.clone(), source })?;
        let stream = tokio::net::UnixStream::connect(&files.socket).await;
        let stream = stream.map_err(|source| ProcessError::Lease { id: id.clone(), source })?;
        Tree::take(stream, files.clone(), &record.spec, Some(shim)).await
    };
    let tree = lease.await;
    if tree.is_err() {
        files.remove();
    }
    tree.map_err(|error| match error {
        ProcessError::Start { reason, .. } => ProcessError::Start { program: child, reason },
        other => other,
    })
}

/// A tree of the same name: refused while it lives, swept if its shim was killed.
async fn clear_the_place(files: &Files, id: &str) -> Result<(), ProcessError> {
    if UnixStream::connect(&files.socket).is_ok() {
        return Err(ProcessError::Running { id: id.to_owned() });
    }
    if let Ok(record) = files.read() {
        // Only a panic in there could make this fail, and the sweep is no condition of the start.
        let _ = tokio::task::spawn_blocking(move || sweep(&record)).await;
    }
    files.remove();
    Ok(())
}

fn start_shim(
    program: &Path,
    record: &Path,
    listener: UnixListener,
    inherit: Option<UnixListener>,
) -> io::Result<tokio::process::Child> {
    let first_closed = (OWN_LISTENER_FD + 1 + i32::from(inherit.is_some())).unsigned_abs();
    let mut command = std::process::Command::new(program);
    command.arg0("rbee").arg("shim").arg(record);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut mappings = vec![FdMapping { parent_fd: OwnedFd::from(listener), child_fd: OWN_LISTENER_FD }];
    mappings
        .extend(inherit.map(|parent| FdMapping { parent_fd: parent.into(), child_fd: CHILD_LISTENER_FD }));
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    // SAFETY: between fork and exec; one system call, no allocation, no locks.
    unsafe {
        // A shim outlives us: a stray descriptor in it would hold a terminal, a lock or a test's pipe open.
        command.pre_exec(move || platform::close_from(first_closed));
    }
    // Tokio's child is reaped by its runtime when it ends, also after we have let go of it.
    tokio::process::Command::from(command).spawn()
}
