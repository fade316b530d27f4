package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/semaphore"
	"golang.org/x/text/unicode/norm"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	saltLength = 16
	keyLength  = 32
	// hashWait is how long a request waits for its turn to hash a password, hashQueue how many wait at the same time.
	hashWait  = 20 * time.Second
	hashQueue = 1000
)

// hasher hashes and checks passwords, a few at a time: each one is made to be expensive, and chat has to go on.
type hasher struct {
	cost    Argon2
	pepper  string // of bcrypt hashes from elsewhere
	work    hashProcesses
	turns   *semaphore.Weighted
	waiting atomic.Int64
}

func newHasher(c PasswordConfig) *hasher {
	atOnce := max(1, runtime.GOMAXPROCS(0)/2)
	if c.Program != "" {
		atOnce = runtime.GOMAXPROCS(0) // of processes that give way to this one
	}
	return &hasher{cost: c.Argon2, pepper: c.BcryptPepper, work: hashProcesses{program: c.Program}, turns: semaphore.NewWeighted(int64(atOnce))}
}

var errHashBusy = mxerr.Unavailable("too many people are signing in at the moment, try again soon")

func (h *hasher) turn(ctx context.Context) (release func(), err error) {
	defer h.waiting.Add(-1)
	if h.waiting.Add(1) > hashQueue {
		return nil, errHashBusy
	}
	waiting, cancel := context.WithTimeout(ctx, hashWait)
	defer cancel()
	if err := h.turns.Acquire(waiting, 1); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errHashBusy
	}
	return func() { h.turns.Release(1) }, nil
}

// hash makes a stored form of a password: $argon2id$v=19$m=19456,t=2,p=1$salt$key.
func (h *hasher) hash(ctx context.Context, password string) ([]byte, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var salt [saltLength]byte
	_, _ = rand.Read(salt[:]) // never fails
	key := h.work.do(ctx, hashJob{Password: []byte(password), Salt: salt[:], Cost: h.cost, KeyLength: keyLength}).Key
	return fmt.Appendf(nil, "$argon2id$v=%d$%s$%s$%s", argon2.Version, h.cost.params(),
		base64.RawStdEncoding.EncodeToString(salt[:]), base64.RawStdEncoding.EncodeToString(key)), nil
}

func (c Argon2) params() string { return fmt.Sprintf("m=%d,t=%d,p=%d", c.MemoryKiB, c.Time, c.Threads) }

// check tells whether a password fits a stored form, and whether that should be made anew because its cost is not the
// configured one. Without a stored form it works as long and says no.
func (h *hasher) check(ctx context.Context, stored []byte, password string) (ok, stale bool, err error) {
	if len(password) > maxPasswordLength {
		return false, false, nil
	}
	done, err := h.turn(ctx)
	if err != nil {
		return false, false, err
	}
	defer done()
	switch s := string(stored); {
	case s == "":
		var salt [saltLength]byte
		h.work.do(ctx, hashJob{Password: []byte(password), Salt: salt[:], Cost: h.cost, KeyLength: keyLength})
		return false, false, nil
	case strings.HasPrefix(s, "$2"):
		// As Synapse made them: the password in Unicode's form NFKC, then the pepper, and of both the first 72 bytes.
		password := norm.NFKC.String(password) + h.pepper
		r := h.work.do(ctx, hashJob{Bcrypt: stored, Password: []byte(password)})
		if r.Error != "" {
			return false, false, fmt.Errorf("a stored bcrypt hash: %s", r.Error)
		}
		return r.Fits, true, nil
	default:
		cost, salt, key, err := parseArgon2(s)
		if err != nil {
			return false, false, err
		}
		got := h.work.do(ctx, hashJob{Password: []byte(password), Salt: salt, Cost: cost, KeyLength: uint32(len(key))}).Key
		return subtle.ConstantTimeCompare(got, key) == 1, cost != h.cost, nil
	}
}

var errPasswordForm = errors.New("a stored password hash has an unknown form")

func parseArgon2(s string) (cost Argon2, salt, key []byte, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return cost, nil, nil, errPasswordForm
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &cost.MemoryKiB, &cost.Time, &cost.Threads); err != nil || cost.Time == 0 || cost.Threads == 0 {
		return cost, nil, nil, errPasswordForm
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	key, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(key) < 16 {
		return cost, nil, nil, errPasswordForm
	}
	return cost, salt, key, nil
}

// storableHash tells whether a hash from elsewhere is one that can be checked here.
func storableHash(hash string) bool {
	if strings.HasPrefix(hash, "$2") {
		_, err := bcrypt.Cost([]byte(hash))
		return err == nil
	}
	_, _, _, err := parseArgon2(hash)
	return err == nil
}

func passwordStorable(password string) error {
	switch {
	case password == "":
		return mxerr.MissingParam("a password is required")
	case len(password) > maxPasswordLength:
		return mxerr.InvalidParam(fmt.Sprintf("the password may have at most %d bytes", maxPasswordLength))
	}
	return nil
}
