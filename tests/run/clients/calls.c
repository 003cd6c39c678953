/* A client of the machine of doubles.
 *
 *   calls once            a few calls; prints what they return
 *   calls storm RESTART   calls under a signal every 200 us: each must be carried out exactly once
 *   calls threads         eight threads on one descriptor
 *   calls churn           opens, calls, and closes for ever
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>

#define COUNT 0x3b80
#define ECHO 0x3b81
#define NEW_QUEUE 0x3b83

static int fd;
static volatile int signals;

static void on_signal(int number)
{
	signals += number == SIGALRM;
}

static int once(void)
{
	unsigned int word = 41;
	int first = ioctl(fd, COUNT), echoed = ioctl(fd, ECHO, &word);

	printf("%d %d %u\n", first, echoed, word);
	return 0;
}

static int storm(int restart)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = restart ? SA_RESTART : 0 };
	struct itimerval timer = { { 0, 200 }, { 0, 200 } };
	int done = 0, interrupted = 0;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; i < 5000; i++) {
		int result = ioctl(fd, COUNT);

		if (result < 0 && errno == EINTR)
			interrupted++;
		else if (result != ++done)
			return printf("call %d says %d\n", done, result), 1;
	}
	timer.it_value.tv_usec = timer.it_interval.tv_usec = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
	if (restart && interrupted)
		return printf("%d calls were interrupted\n", interrupted), 1;
	printf("%s\n", signals > 50 && ioctl(fd, COUNT) == done + 1 ? "exactly once" : "lost");
	return 0;
}

static void *thread(void *unused)
{
	for (int i = 0; i < 500; i++)
		if (ioctl(fd, COUNT) < 1)
			abort();
	return unused;
}

static int threads(void)
{
	pthread_t all[8];

	for (int i = 0; i < 8; i++)
		pthread_create(&all[i], NULL, thread, NULL);
	for (int i = 0; i < 8; i++)
		pthread_join(all[i], NULL);
	printf("%d\n", ioctl(fd, COUNT));
	return 0;
}

static int churn(void)
{
	for (;;) {
		int other = open("/dev/iommu", O_RDWR), queue = ioctl(other, NEW_QUEUE);

		ioctl(other, COUNT);
		close(queue);
		close(other);
	}
}

int main(int argc, char **argv)
{
	fd = open("/dev/iommu", O_RDWR);
	if (fd < 0 || argc < 2)
		return 2;
	if (!strcmp(argv[1], "storm"))
		return storm(argc > 2);
	if (!strcmp(argv[1], "threads"))
		return threads();
	if (!strcmp(argv[1], "churn"))
		return churn();
	return once();
}
