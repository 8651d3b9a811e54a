import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.util.Arrays;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.jgroups.JChannel;
import org.jgroups.Message;
import org.jgroups.ReceiverAdapter;

/**
 * A member that stays and is told what to do by lines: `join`, `member TAKE GIVE EVENT_BYTES`, and
 * `latency WARM_UP SAMPLES EVENT_BYTES`. All members get the same number of orders, so that the number of an order,
 * at the start of every event, tells the events of one from what is late of another.
 */
public final class Jgroups extends ReceiverAdapter {
    private static final long IDLE_NS = 5_000_000_000L;

    private final JChannel channel;
    private final BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
    private final PrintStream output;
    private final OperatingSystemMXBean system =
        (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    private final Semaphore done = new Semaphore(0);

    private volatile int order;
    private volatile long take;
    private volatile long taken;
    private volatile long first;
    private volatile long last;
    private volatile long cpuBefore;

    private Jgroups(PrintStream output, String configuration) throws Exception {
        this.output = output;
        this.channel = new JChannel(configuration);
        channel.setReceiver(this);
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream output = System.out;
        System.setOut(System.err); // the library prints there, too
        new Jgroups(output, arguments[0]).run();
        System.exit(0);
    }

    private void run() throws Exception {
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            switch (words[0]) {
                case "join":
                    channel.connect("bench");
                    output.println("ready");
                    break;
                case "member":
                    member(Long.parseLong(words[1]), Long.parseLong(words[2]), Integer.parseInt(words[3]));
                    break;
                case "latency":
                    latency(Integer.parseInt(words[1]), Integer.parseInt(words[2]), Integer.parseInt(words[3]));
                    break;
                default:
                    throw new IllegalArgumentException(line);
            }
        }
        channel.close();
    }

    /** One thread at a time: all events come from the sequencer, in its order. */
    @Override
    public synchronized void receive(Message message) {
        byte[] buffer = message.getRawBuffer();
        int at = message.getOffset();
        int tag = (buffer[at] & 0xff) << 8 | buffer[at + 1] & 0xff;
        if (tag != (order & 0xffff)) {
            return;
        }
        taken++;
        if (taken == 1) {
            first = System.nanoTime();
        }
        if (take == 0) {
            done.release();
        } else if (taken == take) {
            last = System.nanoTime();
            done.release();
        }
    }

    private byte[] prepare(long expected, int eventBytes) {
        synchronized (this) {
            order++;
            take = expected;
            taken = 0;
            done.drainPermits();
        }
        byte[] event = new byte[eventBytes];
        event[0] = (byte) (order >> 8);
        event[1] = (byte) order;
        cpuBefore = system.getProcessCpuTime();
        output.println("ready");
        return event;
    }

    private void member(long expected, long give, int eventBytes) throws Exception {
        byte[] event = prepare(expected, eventBytes);
        if (give > 0) {
            input.readLine();
        }
        for (long sent = 0; sent < give; sent++) {
            channel.send(new Message(null, null, event));
        }
        long before = -1;
        while (!done.tryAcquire(IDLE_NS, TimeUnit.NANOSECONDS)) {
            if (taken > 0 && taken == before) {
                last = System.nanoTime() - IDLE_NS;
                break;
            }
            before = taken;
        }
        output.printf("{\"events\": %d, \"first\": %.9f, \"last\": %.9f, \"lost\": %d, \"cpu_s\": %.6f}%n",
            taken - 1, first / 1e9, last / 1e9, expected - taken, usedCpu());
    }

    private void latency(int warmUp, int samples, int eventBytes) throws Exception {
        double[] micros = new double[samples];
        byte[] event = prepare(0, eventBytes);
        input.readLine();
        for (int index = -warmUp; index < samples; index++) {
            if (index == 0) {
                cpuBefore = system.getProcessCpuTime();
            }
            long start = System.nanoTime();
            channel.send(new Message(null, null, event));
            if (!done.tryAcquire(IDLE_NS, TimeUnit.NANOSECONDS)) {
                throw new IllegalStateException("an event has not come");
            }
            if (index >= 0) {
                micros[index] = (System.nanoTime() - start) / 1e3;
            }
        }
        Arrays.sort(micros);
        output.printf(
            "{\"samples\": %d, \"min_us\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"max_us\": %.3f, \"cpu_s\": %.6f}%n",
            samples, micros[0], micros[samples / 2], micros[samples * 99 / 100], micros[samples - 1], usedCpu());
    }

    private double usedCpu() {
        return (system.getProcessCpuTime() - cpuBefore) / 1e9;
    }
}
