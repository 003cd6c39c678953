// The same few calls from Rust, with nothing but the standard library.
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

fn main() {
    let file = OpenOptions::new().read(true).write(true).open("/dev/iommu").unwrap();
    let mut word: u32 = 41;
    let (first, echoed) = unsafe { (ioctl(file.as_raw_fd(), 0x3b80), ioctl(file.as_raw_fd(), 0x3b81, &mut word)) };
    println!("{first} {echoed} {word}");
}
