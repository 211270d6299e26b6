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

/// How long after it is ready a process still does what belongs to its start.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(3);

/// [`give_back`], once the start is over.
pub fn give_back_later() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        give_back();
    });
}

/// Returns unused pages to the system: after the start, and after a busy time.
pub fn give_back() {
    forget_code();
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of this program's code, most of which only the start or the busy time ran. What is called again is mapped again, from the kernel's
/// cache of the file.
fn forget_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let here = forget_code as fn() as usize;
    let Some((start, end)) = maps.lines().find_map(|line| executable(line).filter(|(start, end)| (*start..*end).contains(&here))) else {
        return;
    };
    // SAFETY: the range is one mapping of this process, private, of a file and not writable: none of its pages differs from the file, so that reading
    // one again gives the same bytes.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
    }
}

/// The range of a line of `/proc/self/maps` about a file's code that nobody can have written to.
fn executable(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (rights, inode) = (words.next()?, words.nth(2)?);
    let address = |text| usize::from_str_radix(text, 16).ok();
    (rights == "r-xp" && inode != "0").then_some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_a_file_that_cannot_be_written_is_forgotten() {
        let code = "013e6000-05442000 r-xp 013e5000 fe:00 247278                     /usr/local/bin/sternpost";
        assert_eq!(executable(code), Some((0x013e_6000, 0x0544_2000)));
        assert_eq!(executable(&code.replace("r-xp", "rwxp")), None);
        assert_eq!(executable(&code.replace("r-xp", "r--p")), None);
        assert_eq!(executable(&code.replace("247278", "0")), None);
        assert_eq!(executable("nonsense"), None);
        // And this test goes on running after it.
        forget_code();
        assert_eq!(executable(code).map(|(start, _)| start), Some(0x013e_6000));
    }
}
