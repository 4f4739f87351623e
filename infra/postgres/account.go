package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is who the server runs as.
type account struct {
	uid, gid uint32
	// switched says that this program is root and the server is not.
	switched bool
	// closedAbove says that a folder above the data lets the account not through.
	closedAbove bool
}

// accountFor chooses the account for a server on dir: this program's own, or for root an unprivileged one: the owner of the data that is there, else
// the first of PostgreSQL's usual users that the machine has.
func accountFor(dir string) (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	a, err := unprivileged(dir)
	if err != nil {
		return account{}, err
	}
	a.switched = true
	if err := a.own(dir); err != nil {
		return account{}, err
	}
	open, err := a.reachable(dir)
	a.closedAbove = !open
	return a, err
}

func unprivileged(dir string) (account, error) {
	if info, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
			return account{uid: owner.Uid, gid: owner.Gid}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(found.Uid, 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(found.Gid, 10, 32)
		if err != nil {
			continue
		}
		return account{uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return account{}, errors.New("embedded PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor 'nobody'; start as an ordinary user")
}

// own gives a file or folder to the account.
func (a account) own(path string) error {
	if !a.switched {
		return nil
	}
	if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	return nil
}
