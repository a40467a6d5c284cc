/* A read-only file system that shows a folder and waits before each read and each open of a file, as a network would.

   usage: slow_reads FOLDER MOUNTPOINT MICROSECONDS COUNTERS
   build: cc -O2 -pthread -o slow_reads slow_reads.c        end: umount MOUNTPOINT

   Needs root and /dev/fuse, no library. The kernel sends at most 64 requests at once and reads at most 128 KB ahead. COUNTERS
   becomes a file of two native 64-bit integers: reads so far, and their bytes. Protocol: linux/fuse.h, fuse(4). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 64, MOST_PATHS = 1 << 20, BUFFER = 1 << 20, READ_AHEAD = 1 << 17, HASHES = 1 << 21 };
static char *paths[MOST_PATHS]; /* of each node; node 1 is the folder */
static uint32_t hashed[HASHES]; /* open addressing: hash of a path -> node */
static uint32_t nodes = 2;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int device;
static struct timespec delay;
static uint64_t *counters;

static uint32_t node_of(const char *path) {
  uint64_t hash = 1469598103934665603u;
  for (const char *c = path; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
  pthread_mutex_lock(&lock);
  uint32_t slot = hash % HASHES;
  while (hashed[slot] && strcmp(paths[hashed[slot]], path)) slot = (slot + 1) % HASHES;
  if (!hashed[slot]) {
    if (nodes == MOST_PATHS) { fprintf(stderr, "too many files\n"); exit(1); }
    paths[nodes] = strdup(path);
    hashed[slot] = nodes++;
  }
  uint32_t node = hashed[slot];
  pthread_mutex_unlock(&lock);
  return node;
}

static void reply(uint64_t unique, int error, const void *data, size_t size) {
  struct fuse_out_header header = { sizeof header + (error ? 0 : size), -error, unique };
  struct iovec parts[2] = { { &header, sizeof header }, { (void *)data, size } };
  if (writev(device, parts, error || !size ? 1 : 2) < 0 && errno != ENOENT) perror("reply");
}

static struct fuse_attr attributes(const struct stat *s) {
  struct fuse_attr a = { .ino = s->st_ino, .size = s->st_size, .blocks = s->st_blocks, .mode = s->st_mode, .nlink = 1,
                         .blksize = 4096, .mtime = s->st_mtim.tv_sec, .mtimensec = s->st_mtim.tv_nsec };
  return a;
}

static void list(uint64_t unique, DIR *folder, const struct fuse_read_in *in, char *out) {
  size_t at = 0;
  if (in->offset) seekdir(folder, in->offset); else rewinddir(folder);
  for (struct dirent *entry; (entry = readdir(folder));) {
    size_t length = strlen(entry->d_name), need = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
    if (at + need > in->size) break;
    struct fuse_dirent *to = memset(out + at, 0, need);
    to->ino = entry->d_ino, to->off = entry->d_off, to->namelen = length, to->type = entry->d_type;
    memcpy(to->name, entry->d_name, length);
    at += need;
  }
  reply(unique, 0, out, at);
}

static void *serve(void *unused) {
  char *in = malloc(BUFFER), *out = malloc(BUFFER), path[4096];
  for (;;) {
    if (read(device, in, BUFFER) < 0) {
      if (errno == ENODEV) exit(0); /* unmounted */
      continue;
    }
    struct fuse_in_header *header = (void *)in;
    void *arguments = header + 1;
    uint64_t unique = header->unique;
    struct stat s;
    switch (header->opcode) {
    case FUSE_INIT: {
      struct fuse_init_in *asked = arguments;
      struct fuse_init_out o = { .major = 7, .minor = asked->minor < 31 ? asked->minor : 31, .max_readahead = READ_AHEAD,
                                 .flags = asked->flags & (FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES),
                                 .max_background = THREADS, .congestion_threshold = THREADS, .max_write = READ_AHEAD,
                                 .time_gran = 1, .max_pages = READ_AHEAD / 4096 };
      reply(unique, 0, &o, sizeof o);
      break;
    }
    case FUSE_LOOKUP: {
      struct fuse_entry_out o = { .entry_valid = 3600, .attr_valid = 3600 };
      snprintf(path, sizeof path, "%s/%s", paths[header->nodeid], (char *)arguments);
      if (!stat(path, &s)) o.nodeid = node_of(path), o.attr = attributes(&s);
      reply(unique, o.nodeid || errno == ENOENT ? 0 : errno, &o, sizeof o);
      break;
    }
    case FUSE_GETATTR: {
      struct fuse_attr_out o = { .attr_valid = 3600 };
      int error = stat(paths[header->nodeid], &s) ? errno : 0;
      if (!error) o.attr = attributes(&s);
      reply(unique, error, &o, sizeof o);
      break;
    }
    case FUSE_OPEN: {
      nanosleep(&delay, 0);
      int writes = (((struct fuse_open_in *)arguments)->flags & O_ACCMODE) != O_RDONLY;
      int file = writes ? -1 : open(paths[header->nodeid], O_RDONLY);
      struct fuse_open_out o = { .fh = file, .open_flags = FOPEN_KEEP_CACHE };
      reply(unique, writes ? EROFS : file < 0 ? errno : 0, &o, sizeof o);
      break;
    }
    case FUSE_READ: {
      struct fuse_read_in *asked = arguments;
      nanosleep(&delay, 0);
      ssize_t got = pread(asked->fh, out, asked->size, asked->offset);
      if (got >= 0) __sync_fetch_and_add(counters, 1), __sync_fetch_and_add(counters + 1, got);
      reply(unique, got < 0 ? errno : 0, out, got);
      break;
    }
    case FUSE_RELEASE: close(((struct fuse_release_in *)arguments)->fh); reply(unique, 0, 0, 0); break;
    case FUSE_OPENDIR: {
      DIR *folder = opendir(paths[header->nodeid]);
      struct fuse_open_out o = { .fh = (uintptr_t)folder };
      reply(unique, folder ? 0 : errno, &o, sizeof o);
      break;
    }
    case FUSE_READDIR: list(unique, (DIR *)(uintptr_t)((struct fuse_read_in *)arguments)->fh, arguments, out); break;
    case FUSE_RELEASEDIR: closedir((DIR *)(uintptr_t)((struct fuse_release_in *)arguments)->fh); reply(unique, 0, 0, 0); break;
    case FUSE_STATFS: { struct fuse_statfs_out o = { .st = { .bsize = 4096, .namelen = 255 } }; reply(unique, 0, &o, sizeof o); break; }
    case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT: break; /* no answer */
    case FUSE_DESTROY: reply(unique, 0, 0, 0); exit(0);
    default: reply(unique, ENOSYS, 0, 0);
    }
  }
}

int main(int count, char **arguments) {
  if (count != 5) { fprintf(stderr, "usage: slow_reads FOLDER MOUNTPOINT MICROSECONDS COUNTERS\n"); return 2; }
  paths[1] = arguments[1];
  long microseconds = atol(arguments[3]);
  delay = (struct timespec){ microseconds / 1000000, microseconds % 1000000 * 1000 };
  int file = open(arguments[4], O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (file < 0 || ftruncate(file, 2 * sizeof *counters)) { perror(arguments[4]); return 1; }
  counters = mmap(0, 2 * sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  device = open("/dev/fuse", O_RDWR);
  char options[128];
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
  if (device < 0 || mount("slow_reads", arguments[2], "fuse", MS_NODEV | MS_NOSUID | MS_RDONLY, options)) { perror("mount"); return 1; }
  for (int k = 1; k < THREADS; k++) { pthread_t thread; pthread_create(&thread, 0, serve, 0); }
  serve(0);
}
