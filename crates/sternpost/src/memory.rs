//! The C library's allocator, told what kind of process this is: few threads that allocate much, many that allocate little, and a long life.

/// Heaps of the allocator. By default there are eight for each core, each of which keeps what its busiest moment needed.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 4;

/// To be called before threads are started.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain setting of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
    }
}

/// Returns unused pages to the system: after the start, and after a busy time.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
