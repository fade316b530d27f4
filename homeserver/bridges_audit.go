package homeserver

import (
	"context"
	"log/slog"
	"os/user"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func newAuditLog(cfg *Config, st *store.Store, key event.SigningKey, log *slog.Logger) *audit.Log {
	return audit.New(audit.Deps{Store: st, Logger: log, ServerName: cfg.ServerName, Key: key, Config: cfg.AuditConfig()})
}

// permissionRefused notes that somebody called what only others may call.
func (s *Server) permissionRefused(ctx context.Context, who *web.Identity, pattern string, refused *mxerr.Error) {
	err := s.audit.Refusal(ctx, audit.Entry{
		Source: audit.Source{Actor: who.UserID, Device: who.DeviceID, Session: audit.SessionName(who.SessionID)},
		Action: "permission.refused", Reason: refused.Code, Details: map[string]any{"what": pattern},
	})
	if err != nil {
		s.log.Error("a refused permission cannot be written into the audit log", "user_id", who.UserID, "error", err)
	}
}

// fromCommandLine says in the audit log that somebody on the server's machine acts, and who that is there.
func fromCommandLine(ctx context.Context) context.Context {
	s := audit.Source{Kind: audit.KindCLI, Agent: "moothall"}
	if u, err := user.Current(); err == nil {
		s.Agent += " by " + u.Username
	}
	return audit.WithSource(ctx, s)
}
