package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// account is who the server runs as.
type account struct {
	uid, gid uint32
	switched bool // this program is root and the server is not
}

// accountFor chooses the account for a server on cluster: this program's own, or for root an unprivileged one: the owner of the data that is there,
// else the first of PostgreSQL's usual users that the machine has.
func accountFor(cluster string) (account, error) {
	owner, owned := ownerOf(cluster)
	if os.Geteuid() != 0 {
		if owned && owner.uid != uint32(os.Geteuid()) {
			return account{}, fmt.Errorf("the data in %s belongs to user %d; start as that user or as root, or choose another data folder", cluster, owner.uid)
		}
		return account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	if owned && owner.uid != 0 {
		owner.switched = true
		return owner, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if a, err := lookup(name); err == nil {
			return a, nil
		}
	}
	return account{}, errors.New("PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor 'nobody' to run it; start as an ordinary user")
}

func lookup(name string) (account, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return account{}, err
	}
	uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
	return account{uid: uint32(uid), gid: uint32(gid), switched: true}, errors.Join(uidErr, gidErr)
}

func ownerOf(path string) (account, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return account{}, false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return account{}, false
	}
	return account{uid: owner.Uid, gid: owner.Gid}, true
}

// attributes are how the server's processes are started: in a session of their own, so that a Ctrl-C at the terminal reaches this program and
// not the server under it, and under the account.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a.switched {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// own gives a file or folder to the account.
func (a account) own(path string) error {
	if !a.switched {
		return nil
	}
	if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	return nil
}
