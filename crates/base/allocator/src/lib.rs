//! Free blocks of small sizes, kept by each thread in front of the system's allocator.
//!
//! Objects are trees of small maps and texts, made and dropped by the hundred within one request. glibc keeps seven free blocks of a size for
//! a thread; beyond that every block goes through its bins, under a lock. Here a thread keeps up to [`KEPT_BYTES`] of each size, so that the next
//! request is made of the blocks of the last. Larger blocks, and those beyond, are the system's business.
//!
//! Way in: [`Allocator`] as the program's `#[global_allocator]`. No tasks; a thread's blocks go back when it ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::null_mut;

/// Sizes differ by this much, which is also the alignment of every block.
const STEP: usize = 16;
/// The smallest block. glibc's blocks have eight bytes of its own before them: these sizes fill its chunks.
const SMALLEST: usize = 24;
const SIZES: usize = 64;
/// The largest block that is kept: just above a node of a map of JSON values.
const LARGEST: usize = SMALLEST + STEP * (SIZES - 1);
/// What a thread keeps of one size, in bytes: a tree or two of a large object.
const KEPT_BYTES: usize = 32 << 10;

/// The system's allocator, asked less often.
pub struct Allocator;

/// A free block; what follows is of no meaning.
struct Free {
    next: *mut Free,
}

struct Kept {
    first: [*mut Free; SIZES],
    count: [u16; SIZES],
}

thread_local! {
    static KEPT: UnsafeCell<Kept> = const { UnsafeCell::new(Kept { first: [null_mut(); SIZES], count: [0; SIZES] }) };
}

/// Which size a block of this layout has; `None` where it is the system's.
fn size_of(layout: Layout) -> Option<usize> {
    if layout.size() > LARGEST || layout.align() > STEP {
        return None;
    }
    Some(layout.size().saturating_sub(SMALLEST).div_ceil(STEP))
}

/// The layout of all blocks of a size.
fn block(size: usize) -> Layout {
    // SAFETY: the alignment is a power of two and the length far from overflowing.
    unsafe { Layout::from_size_align_unchecked(SMALLEST + STEP * size, STEP) }
}

impl Kept {
    fn take(&mut self, size: usize) -> *mut u8 {
        let first = self.first[size];
        if !first.is_null() {
            // SAFETY: what is on the list are free blocks that `keep` wrote, and nobody else has them.
            self.first[size] = unsafe { (*first).next };
            self.count[size] -= 1;
        }
        first.cast()
    }

    /// `false` where enough are kept.
    ///
    /// # Safety
    /// `pointer` is a block of that size that nobody uses any more.
    unsafe fn keep(&mut self, size: usize, pointer: *mut u8) -> bool {
        if usize::from(self.count[size]) * block(size).size() >= KEPT_BYTES {
            return false;
        }
        let free = pointer.cast::<Free>();
        // SAFETY: every block is larger than a `Free`, aligned as one, and free.
        unsafe { free.write(Free { next: self.first[size] }) };
        self.first[size] = free;
        self.count[size] += 1;
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for size in 0..SIZES {
            loop {
                let pointer = self.take(size);
                if pointer.is_null() {
                    break;
                }
                // SAFETY: all blocks on this list came from the system with this layout.
                unsafe { System.dealloc(pointer, block(size)) };
            }
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
            for align in [1, 8, STEP] {
                let layout = Layout::from_size_align(length, align).unwrap();
                let size = size_of(layout);
                assert_eq!(size.is_none(), length > LARGEST, "{length}");
                assert!(size.is_none_or(|size| block(size).size() >= length && (size == 0 || block(size - 1).size() < length)), "{length}");
            }
        }
        assert_eq!(size_of(Layout::from_size_align(64, 64).unwrap()), None);
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
    }
}
