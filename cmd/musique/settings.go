package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// A setting is a flag with a second and a third place to come from: an environment variable, and a line of the configuration file that has
// the flag's name. A flag wins over the variable, the variable over the file, the file over the default.
type setting struct {
	flag, env, value, usage string
}

// bindSettings declares the settings as flags of cmd, with --config beside them.
func bindSettings(cmd *cobra.Command, settings []setting) {
	flags := cmd.Flags()
	for _, s := range settings {
		flags.String(s.flag, s.value, s.usage+" ($"+s.env+")")
	}
	flags.String("config", "", "a YAML file with settings, one 'flag-name: value' a line ($MUSIQUE_CONFIG)")
}

// resolveSettings gives every flag of cmd that was not set on the command line its value from the environment or the configuration file, and
// returns what the file holds beside settings: the sections named in sections, undecoded. A line in the file that is neither is an error,
// since a misspelt setting that is ignored is worse than a start that fails.
func resolveSettings(cmd *cobra.Command, settings []setting, sections ...string) (map[string]yaml.Node, error) {
	file, err := readConfig(cmd.Flags())
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, s := range settings {
		known[s.flag] = true
		if cmd.Flags().Changed(s.flag) {
			continue
		}
		if v, ok := os.LookupEnv(s.env); ok && v != "" {
			if err := cmd.Flags().Set(s.flag, v); err != nil {
				return nil, fmt.Errorf("$%s: %w", s.env, err)
			}
			continue
		}
		if node, ok := file[s.flag]; ok {
			v, err := scalar(node)
			if err != nil {
				return nil, fmt.Errorf("configuration file, %s: %w", s.flag, err)
			}
			if err := cmd.Flags().Set(s.flag, v); err != nil {
				return nil, fmt.Errorf("configuration file, %s: %w", s.flag, err)
			}
		}
	}
	rest := map[string]yaml.Node{}
	for name, node := range file {
		switch {
		case known[name]:
		case slices.Contains(sections, name):
			rest[name] = node
		default:
			return nil, fmt.Errorf("configuration file: there is no setting %q; 'musique %s --help' lists them", name, cmd.Name())
		}
	}
	return rest, nil
}

func readConfig(flags *pflag.FlagSet) (map[string]yaml.Node, error) {
	path, err := flags.GetString("config")
	if err != nil {
		return nil, err
	}
	if path == "" {
		path = os.Getenv("MUSIQUE_CONFIG")
	}
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path) //nolint:gosec // G703: the operator names the file
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	var file map[string]yaml.Node
	err = yaml.Unmarshal(raw, &file)
	if _, mistyped := errors.AsType[*yaml.TypeError](err); mistyped {
		return nil, fmt.Errorf("configuration file %s: it has settings by name, such as 'http-addr: 127.0.0.1:8080'", path)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return file, nil
}

// scalar reads a line's value; a list is read as its values joined by commas, as the flags and variables write lists.
func scalar(node yaml.Node) (string, error) {
	if node.Kind == yaml.SequenceNode {
		var values []string
		if node.Decode(&values) != nil {
			return "", errNoValue
		}
		return strings.Join(values, ","), nil
	}
	var value string
	if node.Decode(&value) != nil {
		return "", errNoValue
	}
	return value, nil
}

var errNoValue = errors.New("give one value, or a list of values")
