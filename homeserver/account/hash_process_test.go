package account

import (
	"os"
	"sync"
	"testing"
)

func TestMain(m *testing.M) {
	HashChild()
	os.Exit(m.Run())
}

// Hashes of another process are those of this one; a process that dies costs nothing but time.
func TestHashProcess(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cost := Argon2{Time: 1, MemoryKiB: 64, Threads: 1}
	h := newHasher(PasswordConfig{Argon2: cost, Program: program, BcryptPepper: "pepper"})
	here := newHasher(PasswordConfig{Argon2: cost, BcryptPepper: "pepper"})
	defer h.work.close()
	stored, err := h.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if len(h.work.idle) != 1 {
		t.Fatalf("%d processes wait after one hash", len(h.work.idle))
	}
	if ok, stale, err := here.check(t.Context(), stored, "correct horse"); err != nil || !ok || stale {
		t.Errorf("checked here: %v %v %v", ok, stale, err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			password := "correct horse"
			if i%2 == 1 {
				password = "wrong"
			}
			if ok, _, err := h.check(t.Context(), stored, password); err != nil || ok != (i%2 == 0) {
				t.Errorf("%s: %v %v", password, ok, err)
			}
		})
	}
	wg.Wait()
	bcrypted := []byte("$2a$04$zzzzzzzzzzzzzzzzzzzzzuZ6qZ4Qn2v7l1dT4yVbqkzHhX0b0vW2S") // of some other password
	if ok, _, err := h.check(t.Context(), bcrypted, "x"); ok || err != nil {
		t.Errorf("bcrypt: %v %v", ok, err)
	}
	for _, w := range h.work.idle {
		if err := w.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if ok, _, err := h.check(t.Context(), stored, "correct horse"); !ok || err != nil {
		t.Errorf("after the processes were killed: %v %v", ok, err)
	}
}
