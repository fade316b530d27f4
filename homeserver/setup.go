package homeserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// maxSetupLinks is how many links are open at once: those of restarts and of other nodes before the first administrator is made.
const maxSetupLinks = 8

// maxForm bounds the body of a form.
const maxForm = 16 << 10

// readForm reads the form that a page sends.
func readForm(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return mxerr.InvalidParam("the form cannot be read")
	}
	return nil
}

// prepareSetup returns a fresh link to make the first administrator, or "" where there is one. Only the token's hash is
// stored; earlier links stay open until one is used.
func (s *Server) prepareSetup(ctx context.Context) (string, error) {
	token := make([]byte, 24)
	rand.Read(token) // never fails
	text := base64.RawURLEncoding.EncodeToString(token)
	hash := sha256.Sum256([]byte(text))
	open := false
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		has, err := tx.HasAdministrator()
		if err != nil {
			return err
		}
		if open = !has; !open {
			_, err := tx.DeleteSetting(settingSetup)
			return err
		}
		if _, err := tx.InitSetting(settingSetup, []byte{}); err != nil {
			return err
		}
		hashes, _, err := tx.LockSetting(settingSetup)
		if err != nil {
			return err
		}
		if keep := (maxSetupLinks - 1) * sha256.Size; len(hashes) > keep {
			hashes = hashes[len(hashes)-keep:]
		}
		return tx.PutSetting(settingSetup, append(bytes.Clone(hashes), hash[:]...))
	})
	if err != nil || !open {
		return "", err
	}
	return s.cfg.PublicURL + "/setup?token=" + text, nil
}

// setupOpen tells whether a link's token is good and no administrator exists.
func setupOpen(tx *store.Tx, token string) (bool, error) {
	if has, err := tx.HasAdministrator(); err != nil || has {
		return false, err
	}
	hashes, _, err := tx.Setting(settingSetup)
	if err != nil {
		return false, err
	}
	hash := sha256.Sum256([]byte(token))
	for len(hashes) >= sha256.Size {
		if bytes.Equal(hashes[:sha256.Size], hash[:]) {
			return true, nil
		}
		hashes = hashes[sha256.Size:]
	}
	return false, nil
}

// showSetup handles GET /setup.
func (s *Server) showSetup(w http.ResponseWriter, r *http.Request) error {
	token := web.QueryString(r, "token")
	open := false
	err := s.store.Read(r.Context(), func(tx *store.Tx) error {
		var err error
		open, err = setupOpen(tx, token)
		return err
	})
	if err != nil {
		return err
	}
	if !open {
		return s.pages.write(w, r, http.StatusForbidden, "closed", pageData{ServerName: s.cfg.ServerName})
	}
	return s.pages.write(w, r, http.StatusOK, "setup", s.setupData(token))
}

func (s *Server) setupData(token string) pageData {
	return pageData{ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Token: token, MinLength: s.cfg.Passwords.MinLength}
}

// finishSetup handles POST /setup: it makes the first administrator and closes all links.
func (s *Server) finishSetup(w http.ResponseWriter, r *http.Request) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	token, name, password := r.PostFormValue("token"), r.PostFormValue("username"), r.PostFormValue("password")
	data := s.setupData(token)
	data.Username = name
	if password != r.PostFormValue("password2") {
		data.Problem = "password_differs"
		return s.pages.write(w, r, http.StatusBadRequest, "setup", data)
	}
	user, err := s.createFirstAdmin(r.Context(), token, name, password)
	if e := mxerr.As(err); e != nil {
		switch e.Code {
		case "M_FORBIDDEN":
			return s.pages.write(w, r, http.StatusForbidden, "closed", data)
		case "M_INVALID_USERNAME", "M_USER_IN_USE", "M_EXCLUSIVE", "M_WEAK_PASSWORD", "M_INVALID_PARAM":
			data.Problem = e.Code
			return s.pages.write(w, r, http.StatusBadRequest, "setup", data)
		}
	}
	if err != nil {
		return err
	}
	s.log.Info("the first administrator was made", "user_id", user.ID)
	data.Username = string(user.ID)
	return s.pages.write(w, r, http.StatusOK, "done", data)
}

// createFirstAdmin takes the links away before it makes the account, so that of two who use one at the same time only one
// succeeds. If the account cannot be made (its name is not allowed) they come back.
func (s *Server) createFirstAdmin(ctx context.Context, token, name, password string) (account.User, error) {
	if err := s.accounts.ValidatePassword(password); err != nil {
		return account.User{}, err
	}
	var hashes []byte
	err := s.store.Write(ctx, func(tx *store.Tx) error {
		open, err := setupOpen(tx, token)
		if err != nil {
			return err
		}
		if hashes, _, err = tx.LockSetting(settingSetup); err != nil {
			return err
		}
		taken, err := tx.DeleteSetting(settingSetup)
		if err == nil && (!open || !taken) {
			return mxerr.Forbidden("this link is not valid, or was used")
		}
		return err
	})
	if err != nil {
		return account.User{}, err
	}
	user, err := s.accounts.CreateUser(ctx, account.NewUser{Localpart: name, Password: password, Admin: true})
	if err != nil {
		back := s.store.Write(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.PutSetting(settingSetup, hashes) })
		if back != nil {
			s.log.Error("the setup link could not be opened again: restart the server for another one", "error", back)
		}
		return account.User{}, err
	}
	return user, nil
}
