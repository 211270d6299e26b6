//! Free blocks, kept by each thread in front of the system's allocator.
//!
//! Objects are trees of small maps and texts, made and dropped by the hundred within one request, and each request has a few buffers and
//! futures of some kilobytes. glibc keeps seven free blocks of a small size for a thread; beyond that every block goes through its bins, under
//! a lock. Here a thread keeps up to [`KEPT_BYTES`] of each size, so that the next request is made of the blocks of the last. What one thread
//! makes another one often drops: of what is too much for one thread, [`SHARED_BATCHES`] of a size go to those that have none. Larger blocks,
//! and those beyond, are the system's business.
//!
//! Way in: [`Allocator`] as the program's `#[global_allocator]`. No tasks; a thread's blocks go back when it ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::Mutex;

/// Small sizes differ by this much, which is also the alignment of most blocks.
const STEP: usize = 16;
/// The smallest block. glibc's blocks have eight bytes of its own before them: these sizes fill its chunks.
const SMALLEST: usize = 24;
const SMALL_SIZES: usize = 64;
/// The largest small block: just above a node of a map of JSON values.
const LARGEST_SMALL: usize = SMALLEST + STEP * (SMALL_SIZES - 1);
/// Above, there are eight sizes to each doubling, so that no block is more than an eighth too large.
const DOUBLINGS: usize = 4;
const LARGEST: usize = 1024 << DOUBLINGS;
const PLAIN_SIZES: usize = SMALL_SIZES + 8 * DOUBLINGS;
/// What is shared between processors begins where a pair of their cache lines does: tasks, locks.
const WIDE: usize = 128;
/// All sizes, and all again with that alignment.
const SIZES: usize = 2 * PLAIN_SIZES;
/// What a thread keeps of one size, in bytes: a tree or two of a large object.
const KEPT_BYTES: usize = 32 << 10;
/// Batches of one size that wait for a thread that needs them. Half of what a thread keeps is a batch.
const SHARED_BATCHES: usize = 6;

/// The system's allocator, asked less often.
pub struct Allocator;

/// A free block; what follows is of no meaning.
struct Free {
    next: *mut Free,
    /// Where this is the first block of a shared batch: the next batch, and how many blocks this one has.
    batch: *mut Free,
    count: usize,
}

struct Kept {
    first: [*mut Free; SIZES],
    count: [u16; SIZES],
}

thread_local! {
    static KEPT: UnsafeCell<Kept> = const { UnsafeCell::new(Kept { first: [null_mut(); SIZES], count: [0; SIZES] }) };
}

/// Batches of one size, a list of lists.
struct Shared {
    first: *mut Free,
    batches: usize,
}

// SAFETY: the blocks of a batch belong to nobody; who takes the batch, under the lock around this, has them alone.
unsafe impl Send for Shared {}

static SHARED: [Mutex<Shared>; SIZES] = [const { Mutex::new(Shared { first: null_mut(), batches: 0 }) }; SIZES];

/// Which size a block of this layout has; `None` where it is the system's.
fn size_of(layout: Layout) -> Option<usize> {
    let length = layout.size();
    if length > LARGEST || layout.align() > WIDE {
        return None;
    }
    let size = if length <= LARGEST_SMALL {
        length.saturating_sub(SMALLEST).div_ceil(STEP)
    } else {
        let last = length - 1;
        let doubling = last.ilog2() as usize;
        SMALL_SIZES + (doubling - 10) * 8 + ((last >> (doubling - 3)) & 7)
    };
    Some(if layout.align() > STEP { PLAIN_SIZES + size } else { size })
}

/// The layout of all blocks of a size.
fn block(size: usize) -> Layout {
    let (size, align) = if size < PLAIN_SIZES { (size, STEP) } else { (size - PLAIN_SIZES, WIDE) };
    let length = match size.checked_sub(SMALL_SIZES) {
        None => SMALLEST + STEP * size,
        Some(large) => (9 + large % 8) << (7 + large / 8),
    };
    // SAFETY: the alignment is a power of two and the length far from overflowing.
    unsafe { Layout::from_size_align_unchecked(length, align) }
}

/// How many blocks of a size a thread keeps: two at least.
fn kept_max(size: usize) -> usize {
    (KEPT_BYTES / block(size).size()).max(2)
}

impl Kept {
    fn take(&mut self, size: usize) -> *mut u8 {
        let mut first = self.first[size];
        if first.is_null() {
            first = self.refill(size);
        }
        if !first.is_null() {
            // SAFETY: what is on the list are free blocks that `keep` wrote, and nobody else has them.
            self.first[size] = unsafe { (*first).next };
            self.count[size] -= 1;
        }
        first.cast()
    }

    /// A batch of what other threads had too much of. Not waited for: a process that forked may have a lock that nobody will open.
    #[cold]
    fn refill(&mut self, size: usize) -> *mut Free {
        let Ok(mut shared) = SHARED[size].try_lock() else { return null_mut() };
        let first = shared.first;
        if !first.is_null() {
            // SAFETY: the first block of a shared batch, written by `share`; with the lock it is ours.
            let (batch, count) = unsafe { ((*first).batch, (*first).count) };
            shared.first = batch;
            shared.batches -= 1;
            self.first[size] = first;
            self.count[size] = count as u16;
        }
        first
    }

    /// `false` where enough are kept.
    ///
    /// # Safety
    /// `pointer` is a block of that size that nobody uses any more.
    unsafe fn keep(&mut self, size: usize, pointer: *mut u8) -> bool {
        if usize::from(self.count[size]) >= kept_max(size) && !self.share(size) {
            return false;
        }
        let free = pointer.cast::<Free>();
        // SAFETY: every block is as large as a `Free`, aligned as one, and free. What is not written is not read before `share` writes it.
        unsafe { (&raw mut (*free).next).write(self.first[size]) };
        self.first[size] = free;
        self.count[size] += 1;
        true
    }

    /// Gives half of the blocks away; `false` where nobody needs them.
    #[cold]
    fn share(&mut self, size: usize) -> bool {
        let Ok(mut shared) = SHARED[size].try_lock() else { return false };
        let count = usize::from(self.count[size]) / 2;
        if shared.batches >= SHARED_BATCHES || count == 0 {
            return false;
        }
        let first = self.first[size];
        let mut last = first;
        for _ in 1..count {
            // SAFETY: the list has twice as many blocks, all of them written by `keep`.
            last = unsafe { (*last).next };
        }
        // SAFETY: as above; the blocks from `first` to `last` leave this thread's list here.
        unsafe {
            self.first[size] = (*last).next;
            (*last).next = null_mut();
            (&raw mut (*first).batch).write(shared.first);
            (&raw mut (*first).count).write(count);
        }
        self.count[size] -= count as u16;
        shared.first = first;
        shared.batches += 1;
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for size in 0..SIZES {
            let mut next = self.first[size];
            while !next.is_null() {
                let pointer = next;
                // SAFETY: all blocks on this list came from the system with this layout, and were written by `keep`.
                unsafe {
                    next = (*pointer).next;
                    System.dealloc(pointer.cast(), block(size));
                }
            }
            (self.first[size], self.count[size]) = (null_mut(), 0);
        }
    }
}

// SAFETY: blocks come from the system's allocator, with at least the wanted size and alignment, and belong to one user or to one list.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = size_of(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc(layout) };
        };
        // SAFETY: only this thread has its list, and nothing in `take` allocates. While the thread ends there is no list.
        let kept = KEPT.try_with(|kept| unsafe { (*kept.get()).take(size) }).unwrap_or(null_mut());
        // SAFETY: a block's layout is never of no size.
        if kept.is_null() { unsafe { System.alloc(block(size)) } } else { kept }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(size) = size_of(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.dealloc(pointer, layout) };
        };
        // SAFETY: as in `alloc`; the caller gives the block up.
        if !KEPT.try_with(|kept| unsafe { (*kept.get()).keep(size, pointer) }).unwrap_or(false) {
            // SAFETY: blocks of this size came from the system with this layout.
            unsafe { System.dealloc(pointer, block(size)) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if size_of(layout).is_none() {
            // SAFETY: as the caller promises. Large blocks may be zeroes already.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as the caller promises.
        let pointer = unsafe { self.alloc(layout) };
        if !pointer.is_null() {
            // SAFETY: the block has this size and nobody else has it.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size, rounded up to the alignment, does not overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (size_of(layout), size_of(wanted)) {
            // SAFETY: as the caller promises; the block is the system's before and after.
            (None, None) => unsafe { System.realloc(pointer, layout, new_size) },
            (was, is) if was == is => pointer,
            _ => {
                // SAFETY: `wanted` is a valid layout, and the caller gives the old block up where the new one was made.
                unsafe {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        new.copy_from_nonoverlapping(pointer, layout.size().min(new_size));
                        self.dealloc(pointer, layout);
                    }
                    new
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    #[test]
    fn a_block_has_room_for_every_layout_of_its_size() {
        for length in 1..=LARGEST + 1 {
            for align in [1, 8, STEP, 64, WIDE] {
                let layout = Layout::from_size_align(length, align).unwrap();
                let size = size_of(layout);
                assert_eq!(size.is_none(), length > LARGEST, "{length}");
                let Some(size) = size else { continue };
                assert!(block(size).size() >= length && block(size).align() >= align, "{length} {align}");
                assert!(size % PLAIN_SIZES == 0 || block(size - 1).size() < length, "{length}: a smaller one would do");
                assert!(length < 256 || block(size).size() <= length + length / 8 + STEP, "{length}: too much is lost");
            }
        }
        assert_eq!(size_of(Layout::from_size_align(64, 2 * WIDE).unwrap()), None);
    }

    #[test]
    fn contents_survive_growing_shrinking_and_other_threads() {
        let pattern = |length: usize| (0..length).map(|at| at as u8).collect::<Vec<u8>>();
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                std::thread::spawn(move || {
                    let mut all: Vec<Vec<u8>> = Vec::new();
                    for turn in 0..4_000_usize {
                        let length = turn * (7 + seed) % (3 * LARGEST);
                        let mut one = Vec::new();
                        pattern(length).into_iter().for_each(|byte| one.push(byte));
                        one.truncate(length / 2);
                        one.shrink_to_fit();
                        all.push(one);
                        assert!(vec![0_u8; length].iter().all(|byte| *byte == 0));
                        if turn % 3 == 0 {
                            let old = all.swap_remove(turn % all.len());
                            assert_eq!(old, pattern(old.len()));
                        }
                    }
                    all
                })
            })
            .collect();
        // What one thread made another one drops.
        for made in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            assert_eq!(made, pattern(made.len()));
        }
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_may() {
        let blocks: Vec<Box<[u8; 600]>> = (0..1_000).map(|_| Box::new([1; 600])).collect();
        drop(blocks);
        let size = size_of(Layout::new::<[u8; 600]>()).unwrap();
        // SAFETY: this thread's own list, and nothing allocates meanwhile.
        let kept = KEPT.with(|kept| unsafe { (*kept.get()).count[size] });
        assert!(kept > 0 && usize::from(kept) * 600 <= KEPT_BYTES + 600, "{kept}");
        assert!(SHARED[size].lock().unwrap().batches <= SHARED_BATCHES);
    }

    #[test]
    fn what_one_thread_drops_another_one_takes() {
        // Aligned as nothing else in these tests.
        #[repr(align(128))]
        struct Wide([u8; 5_000]);
        let mine = |count: usize| -> Vec<Box<Wide>> { (0..count).map(|_| Box::new(Wide([7; 5_000]))).collect() };
        let size = size_of(Layout::new::<Wide>()).unwrap();
        // Made here, dropped there, more than one thread keeps.
        let made = mine(20);
        std::thread::spawn(move || drop(made)).join().unwrap();
        let shared = SHARED[size].lock().unwrap().batches;
        assert!(shared > 0);
        let taken = mine(2 * kept_max(size));
        assert!(SHARED[size].lock().unwrap().batches < shared);
        assert!(taken.iter().all(|block| block.0.iter().all(|byte| *byte == 7)));
    }
}
