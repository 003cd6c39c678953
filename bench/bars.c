/* A client of bench/bars.py: times accesses to registers of two devices, read, trapped and mapped; prints JSON.
 *
 *     bars DEVICE KIND COUNT      KIND: edu (registers 0 and 4), nvme (CAP and AQA), or pcitest (transfers)
 */
#include <fcntl.h>
#include <linux/types.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BIND _IO(';', 118)
#define ATTACH _IO(';', 119)
#define REGION_INFO _IO(';', 108)
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_MAP _IO(';', 0x85)

struct region {
	__u32 argsz, flags, index, cap;
	__u64 size, offset;
};

static int device;
static uint64_t bar, config;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static uint64_t place(int index)
{
	struct region info = { sizeof(info), 0, index };

	need(!ioctl(device, REGION_INFO, &info), "region info");
	return info.offset;
}

static uint32_t get(uint64_t at)
{
	uint32_t value = 0;

	need(pread(device, &value, 4, bar + at) == 4, "pread");
	return value;
}

static void put(uint64_t at, uint32_t value)
{
	need(pwrite(device, &value, 4, bar + at) == 4, "pwrite");
}

static volatile uint32_t *map(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar);

	need(at != MAP_FAILED, "mmap");
	return at;
}

/* The best of several runs of COUNT accesses, in nanoseconds for one. */
#define TIME(name, access)                                                    \
	do {                                                                  \
		double best = 1e18;                                           \
		for (int run = 0; run < 5; run++) {                           \
			double start = now(), took;                           \
			for (int n = 0; n < count; n++)                       \
				access;                                       \
			took = (now() - start) / count;                       \
			best = took < best ? took : best;                     \
		}                                                             \
		printf("%s\"%s_ns\": %.1f", first ? "" : ", ", name, best);   \
		first = 0;                                                    \
	} while (0)

static void edu(int count)
{
	volatile uint32_t *word;
	int first = 1;

	TIME("pread", get(0));
	TIME("pwrite", put(4, n));
	word = map(4096);
	TIME("trapped_load", (void)word[0]);
	TIME("trapped_store", word[1] = n);
	TIME("pread_while_traced", get(0));
}

static void nvme(int count)
{
	volatile uint32_t *word;
	int first = 1;

	TIME("level_pread", get(0));
	word = map(0x4000);
	TIME("level_load", (void)word[0]);
	TIME("level_store", word[0x24 / 4] = 7 | 7 << 16);
	TIME("level_pread_while_mapped", get(0));
}

/* A buffer that the device of pcitest reaches at 0. */
static void give_memory(int iommufd)
{
	uint32_t alloc[3] = { 12, 0, 0 }, attach[3] = { 12, 0, 0 };
	struct {
		__u32 size, flags, ioas, reserved;
		__u64 va, length, iova;
	} range = { sizeof(range), 7, 0, 0, 0, 4096, 0x100000 };

	need(!ioctl(iommufd, IOAS_ALLOC, alloc), "IOAS_ALLOC");
	attach[2] = range.ioas = alloc[2];
	range.va = (uintptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*(volatile char *)range.va = 1;
	need(!ioctl(iommufd, IOAS_MAP, &range), "IOAS_MAP");
	need(!ioctl(device, ATTACH, attach), "ATTACH");
}

/* A transfer of 4 KiB, until COMMAND.RUN is 0: by calls, and by loads and stores. */
static void transfer_by_call(void)
{
	put(8, 3);
	while (get(8) & 1)
		;
}

static void transfer(volatile uint32_t *word)
{
	word[2] = 3;
	while (word[2] & 1)
		;
}

static void pcitest(int iommufd, int count)
{
	volatile uint32_t *word;
	int first = 1;

	give_memory(iommufd);
	put(0, 0x100000);
	TIME("transfer_by_call", transfer_by_call());
	word = map(4096);
	TIME("transfer", transfer(word));
}

int main(int argc, char **argv)
{
	uint16_t command = 6;
	uint32_t bind[4] = { 16, 0, 0, 0 };

	need(argc == 4, "usage");
	bind[2] = open("/dev/iommu", O_RDWR);
	device = open(argv[1], O_RDWR);
	need((int)bind[2] >= 0 && device >= 0, "open");
	need(!ioctl(device, BIND, bind), "bind");
	bar = place(0);
	config = place(7);
	need(pwrite(device, &command, 2, config + 4) == 2, "command");
	printf("{");
	if (!strcmp(argv[2], "edu"))
		edu(atoi(argv[3]));
	else if (!strcmp(argv[2], "nvme"))
		nvme(atoi(argv[3]));
	else
		pcitest(bind[2], atoi(argv[3]));
	puts("}");
	return 0;
}
