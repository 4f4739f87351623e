package esnode

import (
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is the file system under the database. The first write or sync that it refuses stops the node for good: after a failed fsync nobody
// knows what the disk holds (the kernel may have dropped the dirty pages), so nothing may be written or acknowledged on top of it. The call
// that failed never returns, because pebble answers such an error in places where the process could only crash (WAL rotation panics with
// its mutex released); its callers learn of the failure from store.failed. While the database is being opened errors are ordinary errors.
type disk struct {
	vfs.FS
	armed  atomic.Bool
	failed func(error)
}

func (d *disk) check(operation, name string, err error) error {
	if err == nil || !d.armed.Load() {
		return err
	}
	d.failed(fmt.Errorf("%s %s: %w", operation, name, err))
	select {}
}

func (d *disk) Unwrap() vfs.FS { return d.FS }

func (d *disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, category)
	return d.file(name, f), d.check("create", name, err)
}

func (d *disk) ReuseForWrite(oldName, newName string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(oldName, newName, category)
	return d.file(newName, f), d.check("reuse", newName, err)
}

func (d *disk) OpenReadWrite(name string, category vfs.DiskWriteCategory, options ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, category, options...)
	return d.file(name, f), d.check("open", name, err)
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	return d.file(name, f), d.check("open", name, err)
}

func (d *disk) Rename(oldName, newName string) error {
	return d.check("rename", newName, d.FS.Rename(oldName, newName))
}

func (d *disk) file(name string, f vfs.File) vfs.File {
	if f == nil {
		return nil
	}
	return &diskFile{File: f, disk: d, name: name}
}

// diskFile is a file that is written.
type diskFile struct {
	vfs.File
	disk *disk
	name string
}

func (f *diskFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.disk.check("write", f.name, err)
}

func (f *diskFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(p, offset)
	return n, f.disk.check("write", f.name, err)
}

func (f *diskFile) Sync() error {
	return f.disk.check("sync", f.name, f.File.Sync())
}

func (f *diskFile) SyncData() error {
	return f.disk.check("sync", f.name, f.File.SyncData())
}

func (f *diskFile) SyncTo(length int64) (full bool, err error) {
	full, err = f.File.SyncTo(length)
	return full, f.disk.check("sync", f.name, err)
}
