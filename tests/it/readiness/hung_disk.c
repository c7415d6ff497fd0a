/* Preloaded into a program, stands in for a disk that hangs: while the file $HUNG_DISK exists,
   removing and renaming files takes forever. $HUNG_DISK.noticed exists once that has begun. */

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void hang(void) {
  const char *disk = getenv("HUNG_DISK");
  char noticed[PATH_MAX];
  while (disk && access(disk, F_OK) == 0) {
    snprintf(noticed, sizeof noticed, "%s.noticed", disk);
    close(open(noticed, O_CREAT | O_WRONLY, 0600));
    pause();
  }
}

int unlink(const char *path) {
  hang();
  return unlinkat(AT_FDCWD, path, 0);
}

int rename(const char *from, const char *to) {
  hang();
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}
