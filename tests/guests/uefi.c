/* A UEFI program (UEFI 2.7): from the volume that it was loaded from it reads GIVEN, and writes that there as COPY.
 *
 * It ends QEMU by isa-debug-exit: with GOOD, or with GOOD and the number of the step that failed.
 */
#include <stdint.h>

#define GOOD 0x10
#define EXIT_PORT 0xf4
#define API __attribute__((ms_abi))

/* EFI_FILE_MODE_READ, _WRITE, _CREATE (13.5) */
#define READ 1
#define WRITE 2
#define CREATE (1ull << 63)

typedef uint64_t status;

struct guid {
	uint32_t a;
	uint16_t b, c;
	uint8_t d[8];
};

/* EFI_FILE_PROTOCOL (13.5) and EFI_SIMPLE_FILE_SYSTEM_PROTOCOL (13.4), each up to what is called. */
struct file {
	uint64_t revision;
	status(API *open)(struct file *, struct file **, const uint16_t *name, uint64_t mode, uint64_t attributes);
	status(API *close)(struct file *);
	void *delete;
	status(API *read)(struct file *, uint64_t *size, void *);
	status(API *write)(struct file *, uint64_t *size, const void *);
};

struct volume {
	uint64_t revision;
	status(API *open)(struct volume *, struct file **);
};

/* EFI_LOADED_IMAGE_PROTOCOL (9.1) */
struct image {
	uint32_t revision;
	void *parent, *system, *device;
};

/* EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL (12.4) */
struct text {
	void *reset;
	status(API *put)(struct text *, const uint16_t *);
};

/* EFI_BOOT_SERVICES (4.4) up to HandleProtocol, and EFI_SYSTEM_TABLE (4.3) */
struct boot {
	uint8_t header[24];
	void *others[16];
	status(API *protocol)(void *handle, const struct guid *, void **);
};

struct system {
	uint8_t header[24];
	void *vendor;
	uint64_t revision;
	void *in_handle, *in, *out_handle;
	struct text *out;
	void *error_handle, *error, *runtime;
	struct boot *boot;
};

static const struct guid loaded_image = {
	0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}
};
static const struct guid file_system = {
	0x964e5b22, 0x6459, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}
};
static uint8_t buffer[1 << 20];

/* The step that failed, or 0. */
static int copy(void *handle, struct system *system)
{
	uint64_t size = sizeof buffer;
	struct image *image;
	struct volume *volume;
	struct file *root, *from, *to;

	if (system->boot->protocol(handle, &loaded_image, (void **)&image))
		return 1;
	if (system->boot->protocol(image->device, &file_system, (void **)&volume))
		return 2;
	if (volume->open(volume, &root))
		return 3;
	if (root->open(root, &from, u"GIVEN", READ, 0))
		return 4;
	if (from->read(from, &size, buffer))
		return 5;
	if (root->open(root, &to, u"COPY", CREATE | READ | WRITE, 0))
		return 6;
	if (to->write(to, &size, buffer))
		return 7;
	return to->close(to) ? 8 : 0;
}

API status start(void *handle, struct system *system)
{
	uint8_t code;

	system->out->put(system->out, u"a program of the drive runs\r\n");
	code = GOOD + copy(handle, system);
	__asm__ volatile("outb %0, %1" : : "a"(code), "Nd"((uint16_t)EXIT_PORT));
	return 0;
}
