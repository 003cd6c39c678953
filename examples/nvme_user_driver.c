/*
 * An NVMe drive without a kernel driver, in C: VFIO for its registers and interrupts, iommufd for its DMA.
 *
 *     cc -O2 -Wall -Wextra -o nvme_user_driver examples/nvme_user_driver.c
 *     ./nvme_user_driver 0000:00:07.0 write 0 < image
 *     ./nvme_user_driver 0000:00:07.0 read 0 4096 > first_blocks
 *
 * The device must be VFIO's (vfio-pci). Section numbers are those of the NVM Express Base Specification 1.4.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* What linux/vfio.h (6.6) and linux/iommufd.h (6.2) say: older headers lack it. All commands are of type ';'. */
#define COMMAND(number) _IO(';', number)
enum {
	IOAS_ALLOC = COMMAND(0x81), IOAS_MAP = COMMAND(0x85), BIND = COMMAND(0x76), ATTACH = COMMAND(0x77),
	REGION_INFO = COMMAND(0x6c), SET_IRQS = COMMAND(0x6e),
};
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct attach { uint32_t argsz, flags, pt_id; };
struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct irq_set { uint32_t argsz, flags, index, start, count; int32_t fd; };
enum { READABLE = 4, WRITEABLE = 2, REGION_MMAP = 4, BAR0 = 0, CONFIG = 7, MSIX = 2 };
enum { DATA_NONE = 1, DATA_EVENTFD = 4, TRIGGER = 0x20, MEMORY_AND_MASTER = 6, MASTER = 4 };

/* Registers (3.1), opcodes (5, 6), and fields of CC and CSTS. */
enum { CAP = 0, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum { ENABLE = 6 << 16 | 4 << 20 | 1, SHUT_DOWN = 1 << 14, READY = 1, FATAL = 2, SHUTDOWN = 3 << 2, DONE = 2 << 2 };
enum { DELETE_SQ = 0, CREATE_SQ = 1, DELETE_CQ = 4, CREATE_CQ = 5, IDENTIFY = 6, FLUSH = 0, WRITE = 1, READ = 2 };
enum { PAGE = 4096, ENTRIES = 16, MOST = 1 << 20, WAIT_MS = 10000 };

struct command {
	uint8_t opcode, flags;
	uint16_t id;
	uint32_t nsid;
	uint64_t reserved, metadata, prp1, prp2;
	uint32_t dword10, dword11, dword12, dword13, dword14, dword15;
};
struct completion { uint32_t dword0, reserved; uint16_t sq_head, sq_id, id, status; };

struct dma { uint8_t *memory; uint64_t iova; };

struct queue {
	unsigned number, tail, head, phase;
	struct dma submissions, completions;
};

struct drive {
	int iommufd, device, event;
	uint32_t ioas;
	struct region_info bar, config;
	volatile uint8_t *mapped; /* NULL: registers are read and written by system calls */
	unsigned stride;
	struct queue admin, io;
	struct dma list, data;
	uint64_t blocks, most;
	unsigned block;
};

#define fail(...) (fprintf(stderr, "nvme_user_driver: " __VA_ARGS__), fputc('\n', stderr), exit(1))

static void call(int fd, unsigned command, void *argument, const char *what)
{
	if (ioctl(fd, command, argument) < 0)
		fail("cannot %s: %s", what, strerror(errno));
}

static int open_node(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail("cannot open %s: %s", path, strerror(errno));
	return fd;
}

/* Memory that the program and the device share, mapped where the kernel finds room. */
static struct dma allocate(struct drive *drive, size_t size)
{
	struct dma dma = { mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 0 };
	struct ioas_map map = { sizeof map, READABLE | WRITEABLE, drive->ioas, 0, (uintptr_t)dma.memory, size, 0 };

	if (dma.memory == MAP_FAILED)
		fail("no memory: %s", strerror(errno));
	call(drive->iommufd, IOAS_MAP, &map, "map memory for DMA");
	dma.iova = map.iova;
	return dma;
}

/* Registers: one access of the register's width, in the mapping or by a system call. */
static uint64_t load(struct drive *drive, uint64_t at, unsigned width)
{
	uint64_t value = 0;

	if (drive->mapped)
		return width == 8 ? *(volatile uint64_t *)(drive->mapped + at) : *(volatile uint32_t *)(drive->mapped + at);
	if (pread(drive->device, &value, width, drive->bar.offset + at) != (ssize_t)width)
		fail("cannot read register %#" PRIx64 ": %s", at, strerror(errno));
	return value;
}

static void store(struct drive *drive, uint64_t at, unsigned width, uint64_t value)
{
	atomic_thread_fence(memory_order_release); /* what was put in memory comes before the doorbell */
	if (drive->mapped && width == 8)
		*(volatile uint64_t *)(drive->mapped + at) = value;
	else if (drive->mapped)
		*(volatile uint32_t *)(drive->mapped + at) = value;
	else if (pwrite(drive->device, &value, width, drive->bar.offset + at) != (ssize_t)width)
		fail("cannot write register %#" PRIx64 ": %s", at, strerror(errno));
}

static uint32_t alive(struct drive *drive)
{
	uint32_t status = load(drive, CSTS, 4);

	if (status == UINT32_MAX)
		fail("the controller does not answer any more: it reads as all ones");
	if (status & FATAL)
		fail("the controller reports a fatal error (CSTS.CFS): it needs a reset");
	return status;
}

static void wait_for(struct drive *drive, uint32_t mask, uint32_t value, const char *what)
{
	for (int waited = 0; (alive(drive) & mask) != value; waited++) {
		if (waited == WAIT_MS)
			fail("the controller does not %s", what);
		nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
	}
}

static void make_queue(struct drive *drive, struct queue *queue, unsigned number)
{
	*queue = (struct queue){ number, 0, 0, 1, allocate(drive, PAGE), allocate(drive, PAGE) };
}

/* One command to its end: into the ring, the doorbell, the interrupt, and its completion out of the other ring. */
static void run(struct drive *drive, struct queue *queue, struct command command, const char *what)
{
	volatile struct completion *done = (volatile struct completion *)queue->completions.memory + queue->head;
	struct pollfd wait = { drive->event, POLLIN, 0 };
	uint64_t count;

	command.id = queue->tail;
	memcpy(queue->submissions.memory + queue->tail * sizeof command, &command, sizeof command);
	queue->tail = (queue->tail + 1) % ENTRIES;
	store(drive, DOORBELLS + 2 * queue->number * drive->stride, 4, queue->tail);
	while ((done->status & 1) != queue->phase) {
		alive(drive);
		if (poll(&wait, 1, WAIT_MS) != 1 || read(drive->event, &count, sizeof count) != sizeof count)
			fail("%s: no completion", what);
	}
	atomic_thread_fence(memory_order_acquire); /* the rest of the completion, and data, come behind the phase */
	if (done->status >> 1 & 0x7ff)
		fail("%s failed: status %#05x", what, done->status >> 1 & 0x7ff);
	queue->head = (queue->head + 1) % ENTRIES;
	queue->phase ^= queue->head == 0;
	store(drive, DOORBELLS + (2 * queue->number + 1) * drive->stride, 4, queue->head);
}

/* Blocks of the drive to or from drive->data, by as many commands as its largest transfer asks for (4.3: PRPs). */
static void transfer(struct drive *drive, uint8_t opcode, uint64_t offset, uint64_t length)
{
	uint64_t *list = (uint64_t *)drive->list.memory;

	if ((offset | length) % drive->block)
		fail("offset %#" PRIx64 " and length %#" PRIx64 " must be multiples of %u bytes", offset, length, drive->block);
	for (uint64_t done = 0; done < length; done += drive->most) {
		uint64_t size = length - done < drive->most ? length - done : drive->most, pages = (size + PAGE - 1) / PAGE;
		uint64_t lba = (offset + done) / drive->block, at = drive->data.iova + done;
		struct command command = { .opcode = opcode, .nsid = 1, .prp1 = at, .dword10 = (uint32_t)lba,
			.dword11 = lba >> 32, .dword12 = size / drive->block - 1 };

		for (uint64_t page = 1; page < pages; page++)
			list[page - 1] = at + page * PAGE;
		command.prp2 = pages > 2 ? drive->list.iova : pages == 2 ? list[0] : 0;
		run(drive, &drive->io, command, opcode == READ ? "a read" : "a write");
	}
}

static void open_device(struct drive *drive, const char *address)
{
	char pattern[128], node[64];
	glob_t found;
	struct ioas_alloc ioas = { sizeof ioas, 0, 0 };
	struct bind bind = { sizeof bind, 0, 0, 0 };
	struct attach attach = { sizeof attach, 0, 0 };
	uint16_t command = 0;

	snprintf(pattern, sizeof pattern, "/sys/bus/pci/devices/%s/vfio-dev/vfio*", address);
	if (glob(pattern, 0, NULL, &found))
		fail("VFIO has no device at %s", address);
	snprintf(node, sizeof node, "/dev/vfio/devices/%s", strrchr(found.gl_pathv[0], '/') + 1);
	globfree(&found);
	drive->iommufd = open_node("/dev/iommu");
	drive->device = open_node(node);
	bind.iommufd = drive->iommufd;
	call(drive->iommufd, IOAS_ALLOC, &ioas, "make an I/O address space");
	call(drive->device, BIND, &bind, "bind the device to the iommufd");
	drive->ioas = attach.pt_id = ioas.out_ioas_id;
	call(drive->device, ATTACH, &attach, "attach the device to the I/O address space");

	drive->bar = (struct region_info){ .argsz = sizeof drive->bar, .index = BAR0 };
	drive->config = (struct region_info){ .argsz = sizeof drive->config, .index = CONFIG };
	call(drive->device, REGION_INFO, &drive->bar, "ask for BAR 0");
	call(drive->device, REGION_INFO, &drive->config, "ask for configuration space");
	if (drive->bar.flags & REGION_MMAP) {
		void *pages = mmap(NULL, drive->bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, drive->device, drive->bar.offset);

		drive->mapped = pages == MAP_FAILED ? NULL : pages;
	}
	if (pread(drive->device, &command, 2, drive->config.offset + 4) != 2)
		fail("cannot read configuration space: %s", strerror(errno));
	command |= MEMORY_AND_MASTER;
	if (pwrite(drive->device, &command, 2, drive->config.offset + 4) != 2)
		fail("cannot write configuration space: %s", strerror(errno));
}

/* All queues use MSI-X vector 0: `fd` becomes readable when it fires. -1: no interrupts. */
static void set_interrupt(struct drive *drive, int fd)
{
	struct irq_set set = { sizeof set, TRIGGER | DATA_EVENTFD, MSIX, 0, 1, fd };

	if (fd < 0)
		set = (struct irq_set){ sizeof set, TRIGGER | DATA_NONE, MSIX, 0, 0, -1 };
	call(drive->device, SET_IRQS, &set, "set up MSI-X");
}

static void start(struct drive *drive)
{
	uint64_t capabilities = load(drive, CAP, 8);
	uint32_t size = (ENTRIES - 1) << 16 | 1;

	if (capabilities >> 48 & 0xf)
		fail("the controller's pages are larger than 4 KiB");
	drive->stride = 4u << (capabilities >> 32 & 0xf);
	store(drive, CC, 4, 0);
	wait_for(drive, READY, 0, "stop");
	make_queue(drive, &drive->admin, 0);
	store(drive, AQA, 4, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	store(drive, ASQ, 8, drive->admin.submissions.iova);
	store(drive, ACQ, 8, drive->admin.completions.iova);
	drive->event = eventfd(0, EFD_CLOEXEC);
	set_interrupt(drive, drive->event);
	store(drive, CC, 4, ENABLE);
	wait_for(drive, READY, READY, "become ready");

	drive->list = allocate(drive, PAGE);
	drive->data = allocate(drive, MOST);
	run(drive, &drive->admin, (struct command){ .opcode = IDENTIFY, .prp1 = drive->data.iova, .dword10 = 1 }, "Identify");
	drive->most = drive->data.memory[77] && drive->data.memory[77] < 8 ? (uint64_t)PAGE << drive->data.memory[77] : MOST;
	run(drive, &drive->admin, (struct command){ .opcode = IDENTIFY, .nsid = 1, .prp1 = drive->data.iova }, "Identify");
	memcpy(&drive->blocks, drive->data.memory, sizeof drive->blocks);
	drive->block = 1u << drive->data.memory[128 + 4 * (drive->data.memory[26] & 0xf) + 2];

	make_queue(drive, &drive->io, 1);
	run(drive, &drive->admin, (struct command){ .opcode = CREATE_CQ, .prp1 = drive->io.completions.iova,
		.dword10 = size, .dword11 = 3 }, "Create I/O Completion Queue");
	run(drive, &drive->admin, (struct command){ .opcode = CREATE_SQ, .prp1 = drive->io.submissions.iova,
		.dword10 = size, .dword11 = 1 << 16 | 1 }, "Create I/O Submission Queue");
}

static void stop(struct drive *drive)
{
	run(drive, &drive->admin, (struct command){ .opcode = DELETE_SQ, .dword10 = 1 }, "Delete I/O Submission Queue");
	run(drive, &drive->admin, (struct command){ .opcode = DELETE_CQ, .dword10 = 1 }, "Delete I/O Completion Queue");
	store(drive, CC, 4, ENABLE | SHUT_DOWN);
	wait_for(drive, SHUTDOWN, DONE, "shut down");
	store(drive, CC, 4, 0);
	wait_for(drive, READY, 0, "stop");
	set_interrupt(drive, -1);
	close(drive->device); /* detached, unbound and reset */
	close(drive->iommufd);
}

int main(int count, char **arguments)
{
	struct drive drive = { 0 };
	uint64_t offset, length;
	size_t got;

	if (count < 4 || (strcmp(arguments[2], "write") && (strcmp(arguments[2], "read") || count < 5)))
		fail("usage: nvme_user_driver ADDRESS write OFFSET < DATA, or ADDRESS read OFFSET LENGTH > DATA");
	offset = strtoull(arguments[3], NULL, 0);
	open_device(&drive, arguments[1]);
	start(&drive);
	if (arguments[2][0] == 'w') {
		for (; (got = fread(drive.data.memory, 1, MOST, stdin)); offset += got)
			transfer(&drive, WRITE, offset, got);
		run(&drive, &drive.io, (struct command){ .opcode = FLUSH, .nsid = 1 }, "a flush");
	} else {
		for (length = strtoull(arguments[4], NULL, 0); length; length -= got, offset += got) {
			got = length < MOST ? length : MOST;
			transfer(&drive, READ, offset, got);
			if (fwrite(drive.data.memory, 1, got, stdout) != got)
				fail("cannot write what was read: %s", strerror(errno));
		}
	}
	stop(&drive);
	return 0;
}
