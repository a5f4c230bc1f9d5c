/* Preloaded into a service: writes down every write and sync of its SQLite files, and fails syncs with EIO as told.

   RECORD  where to write it down
   FAILING the files whose syncs may fail: what their paths end with
   AT      which of those syncs fail: numbers from 1, separated by commas
   WHILE   all of them fail while this file is there */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static int record = -1;
static int syncs;

static int ends(const char *path, const char *end) {
    size_t n = strlen(path), m = strlen(end);
    return n >= m && strcmp(path + n - m, end) == 0;
}

static int is_ours(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    path[n < 0 ? 0 : n] = 0;
    return ends(path, ".db") || ends(path, ".db-wal");
}

static void note(char what, const char *path, int64_t offset, const void *data, uint64_t size) {
    struct { char what; uint8_t unused[3]; uint32_t path; int64_t offset; uint64_t size; } head = {what};
    head.path = strlen(path), head.offset = offset, head.size = data ? size : 0;
    if (record < 0) record = open(getenv("RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, head.size}};
    if (writev(record, parts, 3) < 0) abort();
}

static int fails(const char *path) {
    const char *at = getenv("AT"), *during = getenv("WHILE");
    if (!ends(path, getenv("FAILING"))) return 0;
    syncs++;
    if (during && access(during, F_OK) == 0) return 1;
    for (; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (atoi(at) == syncs) return 1;
    return 0;
}

static int sync_file(int fd, const char *name) {
    char path[4096];
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    if (!is_ours(fd, path, sizeof path)) return real(fd);
    pthread_mutex_lock(&one);
    int failing = fails(path);
    int done = failing ? -1 : real(fd);
    note(done == 0 ? 'S' : 'E', path, 0, NULL, 0);
    pthread_mutex_unlock(&one);
    if (failing) errno = EIO;
    return done;
}

int fsync(int fd) { return sync_file(fd, "fsync"); }
int fdatasync(int fd) { return sync_file(fd, "fdatasync"); }

static ssize_t write_at(int fd, const void *data, size_t size, off_t offset) {
    char path[4096];
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    if (!is_ours(fd, path, sizeof path)) return real(fd, data, size, offset);
    pthread_mutex_lock(&one);
    ssize_t done = real(fd, data, size, offset);
    if (done > 0) note('W', path, offset, data, done);
    pthread_mutex_unlock(&one);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }

static int cut(int fd, off_t size, const char *name) {
    char path[4096];
    int (*real)(int, off_t) = dlsym(RTLD_NEXT, name);
    if (!is_ours(fd, path, sizeof path)) return real(fd, size);
    pthread_mutex_lock(&one);
    int done = real(fd, size);
    if (done == 0) note('T', path, size, NULL, 0);
    pthread_mutex_unlock(&one);
    return done;
}

int ftruncate(int fd, off_t size) { return cut(fd, size, "ftruncate"); }
int ftruncate64(int fd, off_t size) { return cut(fd, size, "ftruncate64"); }

int unlink(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    int done = real(path);
    if (done == 0 && ends(path, ".db-wal")) {
        pthread_mutex_lock(&one);
        note('U', path, 0, NULL, 0);
        pthread_mutex_unlock(&one);
    }
    return done;
}
