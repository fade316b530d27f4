package homeserver

import "github.com/moothall/moothall/appservices"

// AppServices are the bridges and bots that use the application service API.
type AppServices struct {
	Registrations []string `yaml:"registrations"` // files, or folders of files that end in .yaml
}

func (c *Config) checkAppServices(d *configReader) error {
	if at, err := appservices.Check(c.AppServices.Registrations); err != nil {
		return d.complain(index("appservices.registrations", at), "cannot be used: %v", err)
	}
	return nil
}
