package main

import "fmt"

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Read the configuration and say what is wrong with it."`
}

type configCheckCmd struct{}

// Run is called by kong.
func (configCheckCmd) Run(c *cli) error {
	cfg, _, err := c.load()
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		fmt.Println("Warning:", w)
	}
	database := "SQLite in " + cfg.DataDir
	if cfg.Database.URL != "" {
		database = "PostgreSQL"
	}
	fmt.Printf("The configuration is good: %s at %s, %s.\n", cfg.ServerName, cfg.PublicURL, database)
	return nil
}
